"""The document around a page: style sheet, charts' JSON, plotly.js and our script, in one file.

The charts are drawn by plotly.js in its cartesian bundle: version 4.1.1 of the npm package
plotly.js-cartesian-dist-min, unchanged but gzipped, under the MIT licence (`plotly-LICENSE.txt`;
its notice is in the script too). It is embedded compressed, a third of its 1.5 MB, and the
browser unpacks it, as every browser since 2023 can. One that cannot still shows the text
and tables.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from cropi.report.kit.markup import Charts, Safe, json_text, tag

Section = tuple[str, str, Safe]
"""Id, title and body of a section."""


def document(title: str, top: Safe, sections: Sequence[Section], charts: Charts) -> str:
    """Return one HTML document that loads nothing from anywhere."""
    parts = [tag("section", tag("h2", name), body, id=key) for key, name, body in sections]
    without_scripts = tag("noscript", tag("p", "Charts need JavaScript; texts and tables do not."))
    main = tag("main", tag("header", top, id="top"), without_scripts, *parts)
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


def _navigation(sections: Sequence[tuple[str, str]]) -> Safe:
    links = [tag("a", title, href=f"#{key}") for key, title in sections]
    return tag("nav", tag("a", "CROPI", href="#top", class_="mark"), *links)


def _asset(name: str) -> str:
    return (resources.files("cropi.report.kit") / name).read_text(encoding="utf-8")


def script_hash() -> str:
    """Return the hash by which the page's policy allows its own script."""
    return _digest(_asset("report.js").encode())


@cache
def plotly_hash() -> str:
    """Return the hash by which the page's policy allows plotly.js, unpacked."""
    return _digest(gzip.decompress(_plotly()))


@cache
def packed_plotly() -> str:
    """Return plotly.js, gzipped, as base64."""
    return base64.b64encode(_plotly()).decode()


def _plotly() -> bytes:
    return (resources.files("cropi.report.kit") / "plotly-cartesian.min.js.gz").read_bytes()


def _digest(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
