"""The file of results: every run that there was, written again after each figure."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_parts.bar import verdicts

CUT_OFF = "cut off"


class Record:
    """One run in the file; those before it stay. Raises ValueError for a file that is no record."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.runs = earlier_runs(path)
        self.run: dict[str, Any] = {**about, "parts": {}, "asked": {}}
        self.runs.append(self.run)

    def begin(self, part: str) -> None:
        """A part starts: until it ends it counts as cut off."""
        self.run["parts"][part] = {"status": CUT_OFF, "why": "", "seconds": None, "figures": {}}
        self.write()

    def figure(self, part: str, name: str, value: Any) -> None:
        """A part has measured something."""
        self.run["parts"][part]["figures"][name] = plain(value)
        self.run["asked"] = verdicts(self.run["parts"])
        self.write()

    def end(self, part: str, status: str, why: str, seconds: float | None) -> None:
        """A part is done, skipped, cut off or failed."""
        entry = self.run["parts"].setdefault(part, {"figures": {}})
        entry |= {"status": status, "why": why, "seconds": plain(seconds)}
        self.write()

    def write(self) -> None:
        """Replace the file; whoever reads it, or ends this process, finds a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".part")
        aside.write_text(json.dumps({"runs": self.runs}, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.path)


def earlier_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of a file; none if there is no file."""
    if not path.exists():
        return []
    try:
        runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no runs ({error}); move it away, or give --out") from error
    return runs


def plain(value: Any) -> Any:
    """The same with five significant digits; what is not a finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
