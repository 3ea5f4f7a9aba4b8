"""Reading a run directory that may be unfinished: what is there, and what is missing.

Nothing here fails on an absent or half-written file; it is noted in `RunData.missing`, which the
page shows. Only a directory that is not a run at all is the user's error.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cropi.errors import InputError
from cropi.plugins import name_in, slug
from cropi.report.data.run_summary import ArmSummary, baseline_of, headline, summarise
from cropi.rollouts.statistics import RolloutFileSummary, summarise_rollout_file
from cropi.schema import InfluenceEstimate, Selection
from cropi.store.files import require_intact_table
from cropi.store.ledger import Ledger
from cropi.store.metrics import METRICS, TIMINGS
from cropi.store.run_directory import is_run, pool_rollouts
from cropi.store.tables import read_scores, read_selection
from cropi.study.accuracy import RunRows, read_run_rows
from cropi.study.selected_prompts import unreadable
from cropi.study.study_plan import STUDY_FILE, holds_shared

RUN_FILES = ("config.yaml", "manifest.json", METRICS)
"""A directory with one of these is a run."""

Value = TypeVar("Value")


@dataclass(slots=True)
class StageFiles:
    """What one arm's stage left behind."""

    number: int
    scores: InfluenceEstimate | None
    selection: Selection | None

    @property
    def name(self) -> str:
        """Display name."""
        return f"stage {self.number}"


@dataclass(slots=True)
class RunData:
    """Everything the page shows, in memory. `arms` starts with `main`, the one of interest."""

    path: Path
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: RunRows = field(default_factory=RunRows)
    arms: list[str] = field(default_factory=list)
    stages: dict[str, list[StageFiles]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    rollouts: RolloutFileSummary | None = None
    validation: dict[str, RolloutFileSummary] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    damaged: frozenset[Path] = frozenset()

    @property
    def main(self) -> str:
        """The arm the run is about."""
        return (
            self.arms[0]
            if self.arms
            else str(name_in(self.setting("selection", "strategy")) or "cropi")
        )

    @property
    def baseline(self) -> str | None:
        """The arm that the main one is compared with; None if there is no other."""
        return baseline_of(self.arms, self.main)

    @property
    def planned_steps(self) -> int | None:
        """How many steps an arm takes when the run is finished."""
        stages = self.setting("curriculum", "stages")
        steps = self.setting("curriculum", "steps_per_stage")
        counted = isinstance(stages, int) and isinstance(steps, int)
        return stages * steps or None if counted else None

    def setting(self, *keys: str) -> Any:
        """Return a value of the config by its path; None where it is absent."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def summary(self) -> list[ArmSummary]:
        """Return one line per arm, the main one first."""
        return summarise(self.rows, self.arms, self.main) if self.arms else []

    def headline(self) -> str:
        """Return what happened in one sentence."""
        return headline(self.summary(), self.baseline, self.planned_steps)

    def selections(self, arm: str) -> dict[str, Selection]:
        """Return the arm's selections by the stage's name, in order."""
        stages = self.stages.get(arm, [])
        return {s.name: s.selection for s in stages if s.selection is not None}


def read_run(path: Path) -> RunData:
    """Read what a run directory holds.

    Raises InputError if `path` is not a run directory.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is not a directory; give the directory of a run (out/name of its config)"
        )
    _require_run(path)
    ledger = Ledger(path)
    run = RunData(path, damaged=frozenset(ledger.changed()), missing=ledger.notes())
    _read_settings(run)
    run.missing += [f"{n} is not there" for n in (METRICS, TIMINGS) if not (path / n).is_file()]
    run.rows = read_run_rows(path, path, run.missing, run.damaged)
    run.arms = _arms(run)
    run.stages = {arm: _stages(run, arm) for arm in run.arms}
    _read_pool(run)
    return run


def _require_run(path: Path) -> None:
    """Raise InputError for a folder of something else, and name the runs around it."""
    present = [name for name in RUN_FILES if (path / name).is_file()]
    # A stage has metrics too, and a page of them would look like that of a short run, as would one
    # of what the runs of a study share.
    alone = present and present != [METRICS] and not holds_shared(path)
    if not alone and (whole := next(filter(_is_drawn, path.absolute().parents), None)):
        raise InputError(f"{path} is a part of {whole}; give {whole}")
    if not present:
        runs = sorted(each.name for each in path.iterdir() if _is_drawn(each))
        inside = f" (it holds {', '.join(runs[:3])})" if runs else ""
        raise InputError(
            f"{path} is not a run directory: it has none of {', '.join(RUN_FILES)}; "
            f"give the directory out/name of a run's config{inside}"
        )


def _is_drawn(folder: Path) -> bool:
    """Whether a folder is that of a run or of a study."""
    return is_run(folder) or (folder / STUDY_FILE).is_file()


def _read_settings(run: RunData) -> None:
    run.config_text = _text(run, run.path / "config.yaml")
    run.config = _mapping(run, "config.yaml", run.config_text, yaml.safe_load, yaml.YAMLError)
    text = _text(run, run.path / "manifest.json")
    run.manifest = _mapping(run, "manifest.json", text, json.loads, json.JSONDecodeError)
    notes = run.path / "prompts" / "notes.json"
    if notes.is_file():
        text = _text(run, notes)
        about = _mapping(run, "prompts/notes.json", text, json.loads, json.JSONDecodeError)
        run.notes = [str(line) for line in about.get("lines") or []]


def _text(run: RunData, path: Path) -> str:
    if not path.is_file():
        run.missing.append(f"{path.relative_to(run.path)} is not there")
        return ""
    if path in run.damaged:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _mapping(
    run: RunData,
    name: str,
    text: str,
    parse: Callable[[str], Any],
    error: type[Exception],
) -> dict[str, Any]:
    try:
        value = parse(text) if text else {}
    except (error, ValueError, RecursionError):
        run.missing.append(f"{name} cannot be parsed")
        return {}
    return value if isinstance(value, dict) else {}


def _arms(run: RunData) -> list[str]:
    choices = [run.setting("selection", "strategy"), *(run.setting("baselines") or [])]
    configured = [slug(name) for name in map(name_in, choices) if name]
    in_rows = [arm for row in run.rows.rows if (arm := getattr(row, "arm", ""))]
    # Beside these, folders may be copies, or of another setting's arms: they say nothing new.
    folders = sorted(p.parent.name for p in run.path.glob("arms/*/stages") if p.is_dir())
    return list(dict.fromkeys([*(configured or folders), *in_rows]))


def _stages(run: RunData, arm: str) -> list[StageFiles]:
    folders = [p for p in run.path.glob(f"arms/{arm}/stages/*") if p.is_dir() and p.name.isdigit()]
    return [
        StageFiles(
            int(p.name),
            _read(run, p / "scores.parquet", _scored),
            _read(run, p / "selection.parquet", read_selection),
        )
        for p in sorted(folders, key=lambda p: int(p.name))
    ]


def _scored(path: Path) -> InfluenceEstimate:
    """Read the scores of the prompts that have one; the others are counted by reason."""
    return read_scores(path).scored()


def _read(run: RunData, path: Path, reader: Callable[[Path], Value]) -> Value | None:
    """Read a file; None, with a note, if that is not possible, and None if it is not there."""
    if not path.is_file() or path in run.damaged:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the page is not where files are checked
            return reader(path)
    except (InputError, pa.ArrowException, OSError, KeyError) as error:
        run.missing.append(unreadable(path, run.path, error))
        return None


def _read_pool(run: RunData) -> None:
    prompts = table_of(run, run.path / "prompts" / "pool.parquet", ["prompt_id", "source"])
    if prompts is None:
        run.missing.append("prompts/pool.parquet is not there")
    else:
        ids, names = prompts["prompt_id"].to_pylist(), prompts["source"].to_pylist()
        run.sources = {str(i): str(s) for i, s in zip(ids, names, strict=True)}
    if pool := pool_rollouts(run.path):
        run.rollouts = _read(run, pool, summarise_rollout_file)
    for path in sorted(run.path.glob("rollouts/validation/*.parquet")):
        if (summary := _read(run, path, summarise_rollout_file)) is not None:
            run.validation[path.stem] = summary


def table_of(
    run: RunData, path: Path, columns: list[str] | None = None, ids: Iterable[str] | None = None
) -> pa.Table | None:
    """Read columns of a Parquet file, of some prompts if `ids` are given; None without a file."""
    wanted = None if ids is None else [("prompt_id", "in", list(ids))]

    def read(file: Path) -> pa.Table:
        require_intact_table(file)
        present = pq.read_schema(file).names
        chosen = None if columns is None else [c for c in columns if c in present]
        return pq.read_table(file, columns=chosen, filters=wanted, partitioning=None)

    return _read(run, path, read)
