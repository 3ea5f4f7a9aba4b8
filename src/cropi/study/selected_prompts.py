"""What each stage of a run selected: prompts by source, and how often they were solved before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cropi.errors import InputError
from cropi.rollouts.statistics import summarise_rollout_file
from cropi.short_repr import ShortRepr
from cropi.store.files import file_hash, read_table
from cropi.store.run_directory import pool_rollouts
from cropi.store.tables import read_selection

Counts = dict[str, int]


@dataclass(frozen=True, repr=False)
class StageSelection(ShortRepr):
    """What one stage selected: prompts by source, and their mean pass rate under the rollouts.

    `pass_rate` is None where no rollout of a selected prompt was judged.
    """

    stage: int
    sources: Counts
    pass_rate: float | None


@dataclass(frozen=True, repr=False)
class RunSelections(ShortRepr):
    """A run's selections, stage by stage, beside the pool by source and its mean pass rate.

    `sampled` counts the pool's prompts that the strategy rolled out where it took a sample of its
    own; None where it took none.
    """

    stages: tuple[StageSelection, ...]
    pool: Counts
    pool_pass_rate: float | None
    sampled: int | None = None


class PoolReader:
    """Sources and pass rates of pools; runs of a seed share their rollouts: each is read once.

    A run that has no pool of its own is looked up in the seed's shared run.
    """

    def __init__(self, root: Path, missing: list[str]) -> None:
        """Read below the study's directory `root`; what cannot be read is noted in `missing`."""
        self.root = root
        self.missing = missing
        self.cache: dict[str, dict[str, Any]] = {}

    def selections(self, path: Path, seed: int, arm: str) -> RunSelections:
        """Return what the run selected from its pool, as far as its stages have come."""
        sources = self._read(path, seed, "prompts", _sources)
        rates = self._read(path, seed, "rollouts", _pass_rates)
        folders = [p for p in path.glob(f"arms/{arm}/stages/*") if p.name.isdigit()]
        stages = []
        for folder in sorted(folders, key=lambda p: int(p.name)):
            ids = self._selected_ids(folder / "selection.parquet")
            if ids is not None:
                counts = _counted(sources.get(i, "unknown") for i in ids)
                stages.append(StageSelection(int(folder.name), counts, _mean_rate(ids, rates)))
        rate = _mean_rate(list(sources), rates)
        pool = _counted(sources.values())
        return RunSelections(tuple(stages), pool, rate, self._sampled(path, arm))

    def _sampled(self, path: Path, arm: str) -> int | None:
        """How many prompts the strategy's own sample has."""
        file = path / f"arms/{arm}/stages/0/rollouts/pool.parquet"
        sample = self._read_file(file, "rollouts", _pass_rates) if file.is_file() else {}
        return len(sample) or None

    def _read(
        self, path: Path, seed: int, kind: str, read: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        shared = self.root / f"shared/seed-{seed}"
        file = _pool_file(path, kind) or _pool_file(shared, kind)
        return {} if file is None else self._read_file(file, kind, read)

    def _read_file(
        self, file: Path, kind: str, read: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        try:
            key = f"{kind} {file_hash(file)}"
            if key not in self.cache:
                self.cache[key] = read(file)
        except (InputError, pa.ArrowException, OSError, KeyError) as error:
            if (note := unreadable(file, self.root, error)) not in self.missing:
                self.missing.append(note)
            return {}
        return self.cache[key]

    def _selected_ids(self, file: Path) -> list[str] | None:
        if not file.is_file():
            return None
        try:
            return read_selection(file).prompt_ids
        except InputError as error:
            self.missing.append(unreadable(file, self.root, error))
            return None


def _pool_file(root: Path, kind: str) -> Path | None:
    if kind == "rollouts":
        return pool_rollouts(root)
    file = root / kind / "pool.parquet"
    return file if file.is_file() else None


def unreadable(file: Path, root: Path, error: Exception) -> str:
    """Say that a file below `root` cannot be read, and why."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{file.relative_to(root)} cannot be read: {reason.replace(str(file), 'it')}"


def _counted(names: Iterable[str]) -> Counts:
    return dict(sorted(Counter(names).items()))


def _sources(file: Path) -> dict[str, str]:
    table = read_table(file)
    ids, names = table["prompt_id"].to_pylist(), table["source"].to_pylist()
    return {str(i): str(s) for i, s in zip(ids, names, strict=True)}


def _pass_rates(file: Path) -> dict[str, float | None]:
    """Every prompt that was rolled out; None where no response was judged."""
    return {str(i): g.pass_rate for i, g in summarise_rollout_file(file).groups.items()}


def _mean_rate(ids: Sequence[str], rates: Mapping[str, float | None]) -> float | None:
    judged = [rate for i in ids if (rate := rates.get(i)) is not None]
    return float(np.mean(judged)) if judged else None
