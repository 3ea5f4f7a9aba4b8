"""A run is a directory: what is in it, where, and what may be written when.

    config.yaml  manifest.json  metrics.jsonl  timings.jsonl  report.html
    prompts/    pool.parquet  validation/NAME.parquet  test/NAME.parquet  notes.json
    start/      the policy to start from, where it had to be made (warm-up, adapters)
    rollouts/   pool.parquet  validation/NAME.parquet
    arms/NAME/stages/M/   scores.parquet  selection.parquet  metrics.jsonl  policy/  [rollouts/]

Everything but `timings.jsonl` is the same bytes in every run of the same config and seed on the
same machine, however often it was killed.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cropi import __version__
from cropi.config import RunConfig, affects_results, to_yaml
from cropi.errors import InputError
from cropi.settings import flat
from cropi.store.files import (
    POLICY_RECORD,
    atomic_write,
    write_json,
)
from cropi.store.metrics import (
    FORMAT,
    METRICS,
    SHARED_COSTS,
    START_EVALUATION,
    TIMINGS,
    AnyRow,
    ClockRow,
    TimingRow,
    append_row,
    read_rows,
)

Row = dict[str, Any]
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "numpy", "pyarrow", "math-verify")


@dataclass(frozen=True)
class Stage:
    """One stage's folder and its files."""

    arm: str
    index: int
    folder: Path

    @property
    def scores(self) -> Path:
        """Influence of each informative prompt."""
        return self.folder / "scores.parquet"

    @property
    def selection(self) -> Path:
        """The prompts to train on."""
        return self.folder / "selection.parquet"

    @property
    def metrics(self) -> Path:
        """Training curve, evaluations and costs of the stage."""
        return self.folder / METRICS

    @property
    def policy(self) -> Path:
        """The checkpoint after the stage."""
        return self.folder / "policy"

    @property
    def influence_facts(self) -> Path:
        """What scoring cost, and how far each target direction can be trusted."""
        return self.folder / "influence.json"

    def rollouts(self, kind: str, name: str = "") -> Path:
        """Rollouts that this stage sampled anew from its own policy, where it did."""
        return _set_file(self.folder / "rollouts", kind, name)

    @property
    def refresh_facts(self) -> Path:
        """What was sampled anew, and what that cost."""
        return self.folder / "rollouts.json"

    @property
    def record(self) -> Path:
        """What the checkpoint was made from, and the tokens up to here."""
        return self.policy / POLICY_RECORD

    @property
    def title(self) -> str:
        """How the stage is called before people."""
        return f"{self.arm} stage {self.index}"

    def sibling(self, index: int) -> Stage:
        """Another stage of the same arm."""
        return Stage(self.arm, index, self.folder.parent / str(index))

    def recorded(self) -> Row:
        """The record of a finished stage; empty if it is not finished."""
        return dict(json.loads(self.record.read_text())) if self.record.exists() else {}


@dataclass
class RunDirectory:
    """The folder of a run, opened for one config."""

    root: Path
    config: RunConfig
    base: Path | None = None
    _timed: float = 0.0

    @classmethod
    def open(cls, config: RunConfig, base: Path | None = None) -> RunDirectory:
        """Begin a run in its folder, or go on with one that holds the same config.

        Raises InputError if it cannot be written or holds a run of another config.
        """
        run = cls(config.directory, config, base)
        existing = run.root / "config.yaml"
        # Before there is a manifest nothing has been made: settings may still be mended.
        if existing.is_file() and run.manifest.is_file():
            _require_same(existing, config)
        with atomic_write(existing) as part:
            part.write_text(to_yaml(config), encoding="utf-8")
        return run

    @property
    def manifest(self) -> Path:
        """Versions, machine, seeds and identities."""
        return self.root / "manifest.json"

    def prompts(self, kind: str, name: str = "") -> Path:
        """File of the pool, or of a validation or test set."""
        return _set_file(self.root / "prompts", kind, name)

    def rollouts(self, kind: str, name: str = "") -> Path:
        """Rollouts of the pool or of a validation set."""
        return _set_file(self.root / "rollouts", kind, name)

    @property
    def start(self) -> Path:
        """The policy to start from, where it had to be made."""
        return self.root / "start"

    @property
    def start_evaluation(self) -> Path:
        """Accuracy before any training, shared by all arms."""
        return self.root / START_EVALUATION

    def stage(self, arm: str, index: int) -> Stage:
        """The folder of a stage."""
        return Stage(arm, index, self.root / "arms" / arm / "stages" / str(index))

    @property
    def shared_costs(self) -> Path:
        """Cost rows of what all arms use."""
        return self.root / SHARED_COSTS

    def add_timing(self, row: AnyRow) -> None:
        """Append one wall-time row."""
        append_row(self.timings, row)

    @property
    def timings(self) -> Path:
        """Wall times, the one file that is appended to."""
        return self.root / TIMINGS

    def clock(self, arm: str) -> list[ClockRow]:
        """Rows of an arm's training clock; a line that a kill or a full disk cut is left out."""
        return [row for row in read_rows(self.timings).of(ClockRow) if row.arm == arm]

    @contextmanager
    def timed(
        self, phase: str, arm: str = "", stage: int | None = None, **more: Any
    ) -> Iterator[None]:
        """Record how long a phase took, if it finished; a phase inside it counts for itself."""
        start, inner = time.perf_counter(), self._timed
        yield
        seconds = time.perf_counter() - start - (self._timed - inner)
        self._timed += seconds
        self.add_timing(
            TimingRow(phase=phase, arm=arm, stage=stage, seconds=round(seconds, 3), **more)
        )

    def gather_metrics(self) -> None:
        """Rebuild metrics.jsonl from the shared costs and every finished stage, arms in order."""
        files = [self.shared_costs]
        for strategy in self.config.strategies:
            for index in range(self.config.curriculum.stages):
                files.append(self.stage(strategy.slug, index).metrics)
        with atomic_write(self.root / METRICS) as part, part.open("wb") as handle:
            for file in files:
                handle.write(file.read_bytes() if file.exists() else b"")

    def require_same_inputs(self, **facts: Any) -> None:
        """Raise InputError if what the run began with has changed since: two runs would mix."""
        if not self.manifest.is_file():
            return
        before, now = flat(json.loads(self.manifest.read_text(encoding="utf-8"))), flat(facts)
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(
                f"{self.root} was begun with other inputs than those of now ({', '.join(changed)} "
                "differ); choose another name, e.g. name=my-run, or bring the old ones back"
            )

    def write_manifest(self, **facts: Any) -> None:
        """Write versions, machine, seeds and identities."""
        write_json(
            self.manifest,
            {
                "cropi": __version__,
                "metrics_format": FORMAT,
                "versions": {name: _version(name) for name in LIBRARIES},
                "machine": {"python": platform.python_version(), "system": platform.platform()},
                **facts,
            },
        )


def _set_file(folder: Path, kind: str, name: str) -> Path:
    return folder / kind / f"{name}.parquet" if name else folder / f"{kind}.parquet"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _require_same(existing: Path, config: RunConfig) -> None:
    """Raise InputError naming the settings in which the run on disk differs."""
    try:
        before = flat(yaml.safe_load(existing.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{existing} is damaged; remove it if the run is this one's") from None
    now = flat(yaml.safe_load(to_yaml(config)))
    changed = sorted(
        k for k in before.keys() | now.keys() if affects_results(k) and before.get(k) != now.get(k)
    )
    if changed:
        first = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:3])
        raise InputError(
            f"{existing.parent} holds a run with other settings ({first}); choose another name, "
            "e.g. name=my-run, or remove the directory"
        )
