"""What the three pages of `cropi diagnose` share; writes each with its numbers as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cropi.report.kit.document import Section, document
from cropi.report.kit.markup import (
    Charts,
    Safe,
    card,
    joined,
    listing,
    masthead,
    tag,
    title_and_lead,
)
from cropi.store.files import atomic_write, require_writable, strict_json, write_json
from cropi.store.lock import exclusive_output

About = Mapping[str, str]
"""What was examined, in words: the model, the files, the settings."""
Card = tuple[str, str, str]
"""Value, name and note of a key number."""


class Diagnosis(Protocol):
    """A dataclass with a verdict."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """What it says, and what to do."""


def page(
    kind: str,
    verdict: str,
    cards: Sequence[Card],
    sections: Sequence[Section],
    charts: Charts,
    about: About,
    notes: Sequence[str] = (),
) -> str:
    """Return one HTML document: the verdict, the cards, the sections, what it is based on."""
    top = [
        masthead(f"diagnose {kind}", " · ".join([*about.values()][:2])),
        title_and_lead(verdict, ": "),
        tag("div", listing(notes), class_="missing") if notes else Safe(),
        tag("div", *(card(*parts) for parts in cards), class_="cards"),
    ]
    facts = tag("div", *(_fact(k, v) for k, v in about.items()), class_="columns")
    whole = [*sections, ("about", "What this is based on", facts)]
    return document(f"{kind} · CROPI", joined(top), whole, charts)


def _fact(name: str, value: str) -> Safe:
    return tag("div", tag("h3", name), tag("div", value, class_="answer"))


def require_writable_output(folder: Path, name: str) -> None:
    """Raise InputError unless both files can be written: checked before expensive work."""
    for suffix in ("json", "html"):
        require_writable(folder / f"{name}.{suffix}")


def write_diagnosis(
    report: Diagnosis, html: str, folder: Path, name: str, about: About, **more: Any
) -> Path:
    """Write `name`.json and `name`.html into a folder; return the page's path.

    `more` are derived values worth having in the JSON. Raises InputError if the folder cannot be
    written to.
    """
    target = folder / f"{name}.html"
    with exclusive_output(target):
        write_json(folder / f"{name}.json", {**numbers(report, about), **strict_json(more)})
        with atomic_write(target) as part:
            part.write_text(html, encoding="utf-8")
    return target


def numbers(report: Diagnosis, about: About) -> dict[str, Any]:
    """Return the whole diagnosis as values for strict JSON, its verdict first."""
    values = {"verdict": report.verdict, "about": about, **dataclasses.asdict(report)}
    return dict(strict_json(values))
