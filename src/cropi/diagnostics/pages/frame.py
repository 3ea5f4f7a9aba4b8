"""What the three pages share: masthead, cards, ways to say numbers, and small pieces of charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cropi.estimation.intervals import Interval
from cropi.report.markup import Charts, Figure, Safe, joined, listing, tag
from cropi.report.page import document
from cropi.report.wording import DASH

About = Mapping[str, str]
"""What was looked at, in words: the model, the files, the settings."""


def page(
    kind: str,
    verdict: str,
    cards: Sequence[tuple[str, str, str]],
    sections: Sequence[tuple[str, str, Safe]],
    charts: Charts,
    about: About,
    notes: Sequence[str] = (),
) -> str:
    """One HTML document: the verdict, cards of (value, name, note), sections, what it rests on."""
    masthead = tag(
        "div",
        tag("span", f"diagnose {kind}", class_="run"),
        tag("span", " · ".join([*about.values()][:2]), class_="setup"),
        class_="masthead",
    )
    lead, _, rest = verdict.partition(": ")
    top = [
        masthead,
        tag("h1", lead if rest else verdict, class_="headline"),
        tag("p", f"{rest[:1].upper()}{rest[1:]}", class_="lead") if rest else Safe(),
        tag("div", listing(notes), class_="missing") if notes else Safe(),
        tag("div", *(_card(*card) for card in cards), class_="cards"),
    ]
    facts = tag("div", *(_fact(k, v) for k, v in about.items()), class_="columns")
    whole = [*sections, ("about", "What this rests on", facts)]
    return document(f"{kind} · CROPI", joined(top), whole, charts)


def _card(value: str, name: str, note: str) -> Safe:
    parts = (("value", value), ("name", name), ("note", note))
    return tag("div", *(tag("div", content, class_=kind) for kind, content in parts), class_="card")


def _fact(name: str, value: str) -> Safe:
    return tag("div", tag("h3", name), tag("div", value, class_="answer"))


def number(value: float | None, digits: int = 3) -> str:
    """Say a number with that many significant digits; a dash for none."""
    if value is None or value != value:
        return DASH
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    shown = f"{value:#.{digits}g}"
    return shown.removesuffix(".")


def with_interval(value: Interval, scale: float = 1.0, unit: str = "", digits: int = 3) -> str:
    """Say a mean and half its 95% interval."""
    mean = f"{number(scale * value.mean, digits)}{unit}"
    return mean if value.low is None else f"{mean} ± {number(scale * value.half, 2)}{unit}"


def share(value: float | None, digits: int = 1) -> str:
    """Say a share as a percentage, with the digits that small ones need."""
    if value is None or value != value:
        return DASH
    small = 0 < value < 0.001
    return f"{100 * value:.2g}%" if small else f"{100 * value:.{digits}f}%"


def rule(at: float, axis: str, name: str = "") -> tuple[Figure, list[Figure]]:
    """A dashed line across a chart at a value of `axis` (x or y), with its name."""
    other = "y" if axis == "x" else "x"
    line = {"color": "var(--muted)", "width": 1.5, "dash": "dash"}
    shape: Figure = {"type": "line", "line": line, f"{other}ref": "paper", "layer": "above"}
    shape |= {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1}
    if not name:
        return shape, []
    note: Figure = {axis: at, other: 1, f"{other}ref": "paper", "text": name, "showarrow": False}
    note |= {
        "xanchor": "left" if axis == "x" else "right",
        "yanchor": "top" if axis == "x" else "bottom",
    }
    return shape, [note | {"font": {"color": "var(--muted)", "size": 12}, "xshift": 4}]


def bars(
    x: Sequence[object],
    y: Sequence[float],
    colour: str | list[str],
    name: str = "",
    hover: str = "",
) -> Figure:
    """A bar trace."""
    return {
        "type": "bar",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"color": colour, "line": {"color": "var(--card)", "width": 0.5}},
        "hovertemplate": hover or "%{y}",
    }
