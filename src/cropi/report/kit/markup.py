"""Small pieces of HTML. Every text goes through `text()` or is marked as already safe.

Prompts and responses are written by users and models, and a source's name may be anything: none of
it is ever trusted, neither as HTML, nor inside the page's JSON, nor as a chart's label.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = dict[str, Any]


class Safe(str):
    """HTML made by this package; a plain `str` is text still to be escaped."""

    __slots__ = ()


def text(value: object) -> Safe:
    """Return a value as HTML: escaped, unless it is Safe already."""
    if isinstance(value, Safe):
        return value
    printable = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))
    return Safe(html.escape(printable, quote=True))


def tag(name: str, *content: object, **attributes: object) -> Safe:
    """Return an element; attribute names lose a trailing underscore, `_` becomes `-`."""
    pairs = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{text(v)}"' for k, v in attributes.items()
    )
    return Safe(f"<{name}{pairs}>{''.join(map(text, content))}</{name}>")


def joined(parts: Iterable[object]) -> Safe:
    """Return the parts one after the other."""
    return Safe("".join(map(text, parts)))


LONG_CELL = 60
"""Characters of a cell above which it is a text of several lines, and no name."""


def table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> Safe:
    """Return a table that scrolls on narrow screens; after `left` columns of words, numbers.

    Long texts take several lines, so that the numbers after them stay on the screen.
    """
    kinds = ["words" if i < left else "number" for i in range(len(header))]
    head = joined(
        tag("th", h, class_=kind, scope="col") for h, kind in zip(header, kinds, strict=True)
    )
    body = joined(
        tag("tr", *(_cell(c, kind) for c, kind in zip(row, kinds, strict=True))) for row in rows
    )
    return tag(
        "div", tag("table", tag("thead", tag("tr", head)), tag("tbody", body)), class_="scroll"
    )


def _cell(content: object, kind: str) -> Safe:
    is_long = not isinstance(content, Safe) and len(str(content)) > LONG_CELL
    return tag("td", content, class_=f"{kind} long" if is_long else kind)


def details(summary: object, *content: object) -> Safe:
    """Return a section that opens on a click."""
    return tag("details", tag("summary", summary), *content)


def absent(sentence: str) -> Safe:
    """Say that something is not in the run."""
    return tag("p", sentence, class_="absent")


def hint(*sentence: object) -> Safe:
    """Explain how to read what is above or below."""
    return tag("p", *sentence, class_="hint")


def listing(lines: Iterable[object]) -> Safe:
    """Return a bullet list."""
    return tag("ul", *(tag("li", line) for line in lines))


def switch(control: str, options: Mapping[str, str], label: str) -> Safe:
    """Return buttons for a control that charts depend on; the first value is chosen at first."""
    buttons = [
        tag(
            "button",
            shown,
            type="button",
            data_value=value,
            aria_pressed="true" if i == 0 else "false",
        )
        for i, (value, shown) in enumerate(options.items())
    ]
    return tag(
        "div", *buttons, class_="switch", role="group", aria_label=label, data_control=control
    )


def menu(control: str, options: Mapping[str, str], label: str) -> Safe:
    """Return a drop-down list that does what `switch` does, for many options."""
    items = [tag("option", shown, value=value) for value, shown in options.items()]
    return tag("label", label, " ", tag("select", *items, data_control=control), class_="menu")


def card(value: str, name: str, note: str = "") -> Safe:
    """Return one of the key numbers on top of a page."""
    parts = (("value", value), ("name", name), ("note", note))
    return tag("div", *(tag("div", content, class_=kind) for kind, content in parts), class_="card")


def badge(label: object, kind: str = "") -> Safe:
    """Return a small label; `kind` is "warn", "good" or neither."""
    return tag("span", label, class_=f"badge {kind}".strip())


def controls(*parts: object) -> Safe:
    """Return the row of switches, menus and legends above charts."""
    return tag("div", *parts, class_="controls")


def pair(left: object, right: object) -> Safe:
    """Return two blocks side by side, one above the other on narrow screens."""
    return tag("div", left, right, class_="pair")


def masthead(name: str, setup: str, mark: object = "") -> Safe:
    """Return the line on top of a page: what it is about, and its main settings."""
    parts = [mark, tag("span", name, class_="run"), tag("span", setup, class_="setup")]
    return tag("div", *parts, class_="masthead")


def title_and_lead(sentence: str, separator: str) -> Safe:
    """Return a sentence as the headline up to the separator, and the rest as the line below it."""
    lead, _, rest = sentence.partition(separator)
    headline = tag("h1", f"{lead.rstrip('.')}." if rest else sentence, class_="headline")
    below = tag("p", f"{rest[:1].upper()}{rest[1:]}", class_="lead") if rest else Safe()
    return joined([headline, below])


def figure(title: object, chart: Safe, *more: object) -> Safe:
    """Return a chart under its title."""
    return tag("figure", tag("figcaption", title), chart, *more)


@dataclass(slots=True)
class Charts:
    """The charts of a page: drawn in the browser from one JSON block."""

    specs: dict[str, Any] = field(default_factory=dict)

    def add(self, drawn: Figure, height: int, label: str) -> Safe:
        """Register one chart and return its place in the page."""
        return self.add_variants([], {"": drawn}, height, label)

    def add_variants(
        self, controls: Sequence[str], variants: Mapping[str, Figure], height: int, label: str
    ) -> Safe:
        """Register a chart that depends on controls; a variant's key joins their values by `|`."""
        name = f"chart{len(self.specs)}"
        self.specs[name] = {
            "controls": list(controls),
            "variants": dict(variants),
            "height": height,
        }
        style = f"min-height:{height}px"
        return tag("div", class_="chart", id=name, style=style, role="img", aria_label=label)


def chart_label(label: object, width: int = 28) -> str:
    """Return a chart label, cut if long; Plotly reads some HTML in labels, so it is escaped."""
    whole = str(label)
    # Names of a family often differ at their end, so the middle goes.
    half = width // 2
    short = whole if len(whole) <= width else f"{whole[: half - 1]}…{whole[-half:]}"
    return html.escape(short, quote=False)


def axis_labels(names: Iterable[object]) -> list[str]:
    """Return labels for an axis: Plotly puts equal ones in one place, so that none may be equal."""
    labels: list[str] = []
    for name in names:
        label = chart_label(name)
        earlier = sum(other.split(" #")[0] == label for other in labels)
        labels.append(f"{label} #{earlier + 1}" if earlier else label)
    return labels


def json_text(value: Any) -> Safe:
    """Return JSON that cannot leave a script element; NaN and infinities become null."""
    raw = json.dumps(_rounded(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Safe(raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _rounded(value: Any) -> Any:
    """Return a value with short, finite numbers: six digits are more than a chart can show."""
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
