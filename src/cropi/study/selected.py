"""What each stage of a cell selected: prompts by source, and how often they were solved before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cropi.report.rollouts import rollout_facts
from cropi.store.files import file_hash

Counts = dict[str, int]


@dataclass(frozen=True)
class Choice:
    """What one stage selected: prompts by source, and their mean pass rate under the rollouts.

    `pass_rate` is None where no rollout of a selected prompt was judged.
    """

    stage: int
    sources: Counts
    pass_rate: float | None


@dataclass(frozen=True)
class Selected:
    """A cell's choices, stage by stage, beside the pool by source and the pool's mean pass rate."""

    choices: tuple[Choice, ...]
    pool: Counts
    pool_pass_rate: float | None


class PoolFacts:
    """Sources and pass rates of pools; cells of a seed share their rollouts, so each is read once.

    A cell that keeps no pool of its own is looked up in the seed's shared run.
    """

    def __init__(self, root: Path, missing: list[str]) -> None:
        """Read below the study's directory `root`; what cannot be read is noted in `missing`."""
        self.root = root
        self.missing = missing
        self.known: dict[str, dict[str, Any]] = {}

    def of(self, path: Path, seed: int, arm: str) -> Selected:
        """What the cell selected from its pool, as far as its stages have come."""
        sources = self._read(path, seed, "prompts", _sources)
        rates = self._read(path, seed, "rollouts", _pass_rates)
        folders = [p for p in path.glob(f"arms/{arm}/stages/*") if p.name.isdigit()]
        choices = []
        for folder in sorted(folders, key=lambda p: int(p.name)):
            ids = self._selected(folder / "selection.parquet")
            if ids is not None:
                known = [sources.get(i, "unknown") for i in ids]
                choices.append(Choice(int(folder.name), _counted(known), _mean_rate(ids, rates)))
        rate = _mean_rate(list(sources), rates)
        return Selected(tuple(choices), _counted(sources.values()), rate)

    def _read(self, path: Path, seed: int, kind: str, read: Any) -> dict[str, Any]:
        own = path / kind / "pool.parquet"
        file = own if own.is_file() else self.root / f"shared/seed-{seed}/{kind}/pool.parquet"
        if not file.is_file():
            return {}
        try:
            key = f"{kind} {file_hash(file)}"
            if key not in self.known:
                self.known[key] = read(file)
        except (pa.ArrowException, OSError, KeyError) as error:
            self._unreadable(file, error)
            return {}
        return self.known[key]

    def _selected(self, file: Path) -> list[str] | None:
        if not file.is_file():
            return None
        try:
            found = pq.read_table(file, columns=["prompt_id"], partitioning=None)["prompt_id"]
        except (pa.ArrowException, OSError, KeyError) as error:
            self._unreadable(file, error)
            return None
        return [str(i) for i in found.to_pylist()]

    def _unreadable(self, file: Path, error: Exception) -> None:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        self.missing.append(f"{file.relative_to(self.root)} cannot be read: {reason}")


def _counted(names: Iterable[str]) -> Counts:
    return dict(sorted(Counter(names).items()))


def _sources(file: Path) -> dict[str, Any]:
    table = pq.read_table(file, columns=["prompt_id", "source"], partitioning=None)
    ids, names = table["prompt_id"].to_pylist(), table["source"].to_pylist()
    return {str(i): str(s) for i, s in zip(ids, names, strict=True)}


def _pass_rates(file: Path) -> dict[str, Any]:
    groups = rollout_facts(file).groups
    return {str(i): g.pass_rate for i, g in groups.items() if g.pass_rate is not None}


def _mean_rate(ids: Sequence[str], rates: Mapping[str, float]) -> float | None:
    found = [rates[i] for i in ids if i in rates]
    return float(np.mean(found)) if found else None
