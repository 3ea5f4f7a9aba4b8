"""The whole page: sections in order, the style sheet, the charts' JSON and plotly.js, in one file.

plotly.js (MIT licence, its notice inside) travels compressed, a third of its 4.8 MB, and the
browser unpacks it: every browser since 2023 can. One that cannot still shows the text and tables.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources

from cropi.report.markup import Charts, Safe, joined, json_text, tag
from cropi.report.reading import RunData
from cropi.report.sections import (
    accuracy,
    cost,
    influence,
    pool,
    results,
    samples,
    selection,
    settings,
    training,
)

Body = Callable[[RunData, Charts], Safe]

SECTIONS: tuple[tuple[str, str, Body], ...] = (
    ("accuracy", "Accuracy", accuracy.body),
    ("selection", "What was selected", selection.body),
    ("influence", "Influence", influence.body),
    ("pool", "The pool", pool.body),
    ("training", "Training", training.body),
    ("cost", "Time and cost", cost.body),
    ("samples", "Prompts to look at", samples.body),
    ("settings", "Notes and settings", settings.body),
)


def render(run: RunData) -> str:
    """Return a run's page as one HTML document."""
    charts = Charts()
    name = str(run.config.get("name") or run.path.resolve().name)
    top = joined([_masthead(run, name), results.body(run, charts)])
    sections = [(key, title, body(run, charts)) for key, title, body in SECTIONS]
    return document(f"{name} · CROPI report", top, sections, charts)


def document(
    title: str, top: Safe, sections: Sequence[tuple[str, str, Safe]], charts: Charts
) -> str:
    """Return one HTML document that loads nothing from anywhere; a section is (id, title, body)."""
    parts = [tag("section", tag("h2", name), body, id=key) for key, name, body in sections]
    main = tag("main", tag("header", top, id="top"), *parts)
    scripts = [
        tag("script", json_text(charts.specs), type="application/json", id="charts"),
        tag("script", Safe(packed_plotly()), type="application/octet-stream", id="plotly"),
        tag("script", Safe(_asset("report.js"))),
    ]
    navigation = _navigation([(key, name) for key, name, _ in sections])
    page = tag("html", _head(title), tag("body", navigation, main, *scripts), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _head(title: str) -> Safe:
    # The browser enforces the page's promise: it loads nothing and runs these two scripts only.
    allowed = " ".join(f"'sha256-{digest}'" for digest in (script_hash(), plotly_hash()))
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"base-uri 'none'; form-action 'none'; script-src {allowed}"
    )
    metas = [
        Safe('<meta charset="utf-8">'),
        Safe('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Safe('<meta name="color-scheme" content="light dark">'),
        Safe(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Safe('<link rel="icon" href="data:,">'),
    ]
    return tag("head", *metas, tag("title", title), tag("style", Safe(_asset("report.css"))))


def _masthead(run: RunData, name: str) -> Safe:
    mark = tag("span", "CROPI", class_="mark")
    return tag(
        "div",
        mark,
        tag("span", name, class_="run"),
        tag("span", _setup(run), class_="setup"),
        class_="masthead",
    )


def _setup(run: RunData) -> str:
    stages, steps = (
        run.setting("curriculum", "stages"),
        run.setting("curriculum", "steps_per_stage"),
    )
    parts = [
        str(run.setting("model", "path") or ""),
        f"{len(run.sources):,} prompts" if run.sources else "",
        f"{stages} stages of {steps} steps" if stages and steps else "",
        f"seed {run.config['seed']}" if "seed" in run.config else "",
        f"cropi {run.manifest['cropi']}" if run.manifest.get("cropi") else "",
    ]
    return " · ".join(p for p in parts if p)


def _navigation(sections: Sequence[tuple[str, str]]) -> Safe:
    links = [tag("a", title, href=f"#{key}") for key, title in sections]
    return tag("nav", tag("a", "CROPI", href="#top", class_="mark"), *links)


def _asset(name: str) -> str:
    return (resources.files("cropi.report") / name).read_text(encoding="utf-8")


def script_hash() -> str:
    """Return the hash by which the page's policy knows its own script."""
    return _digest(_asset("report.js").encode())


@cache
def plotly_hash() -> str:
    """Return the hash by which the page's policy knows plotly.js, unpacked."""
    return _digest(_plotly())


@cache
def packed_plotly() -> str:
    """Return plotly.js, gzipped, as base64."""
    return base64.b64encode(gzip.compress(_plotly(), 9, mtime=0)).decode()


def _plotly() -> bytes:
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()


def _digest(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
