"""A run is a directory: what is in it, where, and what may be written when.

    config.yaml  manifest.json  metrics.jsonl  timings.jsonl  report.html
    prompts/    pool.parquet  validation/NAME.parquet  test/NAME.parquet  notes.json
    start/      the policy to start from, where it had to be made (warm-up, adapters)
    rollouts/   pool.parquet  validation/NAME.parquet
    tracking.json  tensorboard/   what was sent where (report_to)
    logs/       the output of programs that sample, where an engine starts one; failures.jsonl
    arms/NAME/stages/M/   scores.parquet  selection.parquet  metrics.jsonl  policy/  [rollouts/]
                          [hidden_states.parquet]: those at the pool's prompts

Everything but `timings.jsonl`, `logs/` and what `report_to` leaves is the same bytes in every run
of the same config and seed on the same machine, however often it was killed; a server's samples are
so up to rounding.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from cropi import __version__
from cropi.errors import InputError
from cropi.store.cached import read_record
from cropi.store.files import POLICY_RECORD, atomic_write, write_json
from cropi.store.ledger import Ledger
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
from cropi.store.mirror import mirror_of

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
    def hidden_states(self) -> Path:
        """Hidden states of the start policy at the pool's prompts; in an arm's first stage."""
        return self.folder / "hidden_states.parquet"

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
        """The cost of scoring, and the reliability of each target direction."""
        return self.folder / "influence.json"

    def rollouts(self, kind: str, name: str = "") -> Path:
        """Rollouts that this stage sampled again from its own policy, if it did."""
        return _set_file(self.folder / "rollouts", kind, name)

    @property
    def refresh_facts(self) -> Path:
        """Which rollouts were sampled again, and what that cost."""
        return self.folder / "rollouts.json"

    @property
    def record(self) -> Path:
        """What the checkpoint was made from, and the tokens up to here."""
        return self.policy / POLICY_RECORD

    @property
    def title(self) -> str:
        """Display name."""
        return f"{self.arm} stage {self.index}"

    def sibling(self, index: int) -> Stage:
        """Another stage of the same arm."""
        return Stage(self.arm, index, self.folder.parent / str(index))

    def recorded(self) -> Row:
        """The record of a finished stage; empty if it is not finished."""
        return read_record(self.record)


@dataclass
class RunDirectory:
    """The folder of a run, and where each of its files is."""

    root: Path
    _timed: float = 0.0

    @cached_property
    def ledger(self) -> Ledger:
        """The finished outputs and the hashes of their files, read once."""
        return Ledger(self.root, mirror_of(self.root))

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, machine, seeds and identities."""
        return self.root / "manifest.json"

    @property
    def foreign(self) -> list[str]:
        """What is here under the names that a run gives, and was made by none."""
        if self.manifest.is_file() or self.config in self.ledger or not self.root.is_dir():
            return []
        files = (self.config, self.start, self.root / METRICS, self.shared_costs)
        names = {"arms", "prompts", "rollouts", *(file.name for file in files)}
        names -= {output.partition("/")[0] for output in self.ledger.entries}
        here = {place.name for place in self.root.iterdir()}
        return sorted(here & names)

    def prompts(self, kind: str, name: str = "") -> Path:
        """File of the pool, or of a validation or test set."""
        return _set_file(self.root / "prompts", kind, name)

    @property
    def prompt_notes(self) -> Path:
        """What happened to the prompts while they were loaded."""
        return self.root / "prompts" / "notes.json"

    def rollouts(self, kind: str, name: str = "") -> Path:
        """The start policy's rollouts of the pool or of a validation set."""
        return _set_file(self.root / "rollouts", kind, name)

    @property
    def logs(self) -> Path:
        """Output of programs that the run has started."""
        return self.root / "logs"

    @property
    def failures(self) -> Path:
        """Plug-ins of the user's that ended the run: their code, and what was wrong."""
        return self.logs / "failures.jsonl"

    @property
    def start(self) -> Path:
        """The policy to start from, where it had to be made."""
        return self.root / "start"

    @property
    def start_evaluation(self) -> Path:
        """Accuracy before any training, shared by all arms."""
        return self.root / START_EVALUATION

    @property
    def shared_costs(self) -> Path:
        """Cost rows of what all arms use."""
        return self.root / SHARED_COSTS

    @property
    def timings(self) -> Path:
        """Wall times, the one file that is appended to."""
        return self.root / TIMINGS

    def stages(self, arm: str, count: int) -> list[Stage]:
        """The first `count` stages of an arm."""
        folder = self.root / "arms" / arm / "stages"
        return [Stage(arm, index, folder / str(index)) for index in range(count)]

    def add_timing(self, row: AnyRow) -> None:
        """Append one wall-time row. Raises InputError if the folder is not there any more."""
        try:
            append_row(self.timings, row)
        except FileNotFoundError:
            raise InputError(
                f"{self.root} was moved or removed while a run was working in it; put it back, and "
                "the same command continues"
            ) from None

    def clock(self, arm: str) -> list[ClockRow]:
        """Rows of an arm's training clock; a line that a kill or a full disk cut is left out."""
        return [row for row in read_rows(self.timings).of_kind(ClockRow) if row.arm == arm]

    @contextmanager
    def timed(
        self, phase: str, arm: str = "", stage: int | None = None, **shared: Any
    ) -> Iterator[None]:
        """Record how long a phase took, if it finished; a phase inside it has a row of its own."""
        start, inner = time.perf_counter(), self._timed
        yield
        seconds = time.perf_counter() - start - (self._timed - inner)
        self._timed += seconds
        self.add_timing(
            TimingRow(phase=phase, arm=arm, stage=stage, seconds=round(seconds, 3), **shared)
        )

    def gather_metrics(self, stages: Iterable[Stage]) -> None:
        """Rebuild metrics.jsonl from the shared costs and the finished ones of these stages."""
        files = [self.shared_costs, *(stage.metrics for stage in stages)]
        with atomic_write(self.root / METRICS) as part, part.open("wb") as handle:
            for file in files:
                handle.write(file.read_bytes() if file.exists() else b"")
        metrics = self.root / METRICS
        listed = [file for file in (metrics, self.shared_costs) if file.exists()]
        self.ledger.record(metrics, "", listed)

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


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, by what no stage's or checkpoint's folder has."""
    return (folder / "config.yaml").is_file() and (folder / "arms").is_dir()


def pool_rollouts(root: Path) -> Path | None:
    """The start policy's rollouts of a run's pool: all prompts', or those that an arm sampled."""
    of_arms = sorted(root.glob("arms/*/stages/0/rollouts/pool.parquet"))
    files = [root / "rollouts" / "pool.parquet", *of_arms]
    return next((file for file in files if file.is_file()), None)


def _set_file(folder: Path, kind: str, name: str) -> Path:
    return folder / kind / f"{name}.parquet" if name else folder / f"{kind}.parquet"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
