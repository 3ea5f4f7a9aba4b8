"""What `cropi diagnose` leaves: a page in the report's style, and the same numbers as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cropi.diagnostics.pages.frame import About
from cropi.store.files import atomic_write, require_writable, write_json


class Diagnosis(Protocol):
    """A dataclass with a verdict."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def verdict(self) -> str:
        """What it says, and what to do."""


def require_folder(out: Path, name: str) -> None:
    """Raise InputError unless both files could be written: asked before expensive work."""
    for suffix in ("json", "html"):
        require_writable(out / f"{name}.{suffix}")


def write_diagnosis(
    report: Diagnosis, page: str, out: Path, name: str, about: About, **more: Any
) -> Path:
    """Write `name`.json and `name`.html into the folder `out`; returns the page's path.

    `more` are derived values worth having in the JSON. Raises InputError if `out` is cannot_write.
    """
    write_json(out / f"{name}.json", {**numbers(report, about), **finite(more)})
    target = out / f"{name}.html"
    with atomic_write(target) as part:
        part.write_text(page, encoding="utf-8")
    return target


def numbers(report: Diagnosis, about: About) -> dict[str, Any]:
    """The whole diagnosis as values for JSON, its verdict first."""
    values = {"verdict": report.verdict, "about": about, **dataclasses.asdict(report)}
    return dict(finite(values))


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null: strict JSON knows none."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
