"""Reading a run directory that may be unfinished: what is there, and what is missing.

Nothing here fails on an absent or half-written file; it is noted in `RunData.missing`, which the
page shows. Only a directory that is no run at all is the user's error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cropi.errors import InputError
from cropi.plugins import name_in, slug
from cropi.report.numbers import Row
from cropi.report.rollouts import RolloutFacts, rollout_facts
from cropi.report.rows import METRICS, TIMINGS, metrics_rows, readable_rows
from cropi.schema import InfluenceEstimate, Selection
from cropi.store.tables import scores_from

MARKS = ("config.yaml", "manifest.json", METRICS)


@dataclass(slots=True)
class StageFiles:
    """What one arm's stage left behind."""

    number: int
    scores: InfluenceEstimate | None
    selection: Selection | None


@dataclass(slots=True)
class RunData:
    """Everything the page shows, in memory. `arms` starts with `main`, the one of interest."""

    path: Path
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    metrics: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)
    stages: dict[str, list[StageFiles]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    rollouts: RolloutFacts | None = None
    validation: dict[str, RolloutFacts] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def main(self) -> str:
        """The arm the run is about."""
        return (
            self.arms[0]
            if self.arms
            else str(name_in(self.setting("selection", "strategy")) or "cropi")
        )

    @property
    def planned_steps(self) -> int | None:
        """How many steps an arm takes when the run is finished."""
        stages, steps = (
            self.setting("curriculum", "stages"),
            self.setting("curriculum", "steps_per_stage"),
        )
        return int(stages) * int(steps) if stages and steps else None

    def setting(self, *keys: str) -> Any:
        """Return a value of the config by its path; None where it is absent."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node


def read_run(path: Path) -> RunData:
    """Read what a run directory holds.

    Raises InputError if `path` is no run directory.
    """
    if not path.is_dir():
        raise InputError(
            f"{path} is no directory; give the directory of a run (out/name of its config)"
        )
    if not any((path / mark).is_file() for mark in MARKS):
        raise InputError(
            f"{path} is no run directory: it has none of {', '.join(MARKS)}; "
            "give the directory out/name of a run's config"
        )
    run = RunData(path)
    _read_settings(run)
    run.missing += [f"{n} is not there" for n in (METRICS, TIMINGS) if not (path / n).is_file()]
    run.metrics = metrics_rows(path, path, run.missing)
    run.timings = readable_rows(path / TIMINGS, path, run.missing)
    run.arms = _arms(run)
    run.stages = {arm: _stages(run, arm) for arm in run.arms}
    _read_pool(run)
    return run


def _read_settings(run: RunData) -> None:
    run.config_text = _text(run, run.path / "config.yaml")
    run.config = _mapping(run, "config.yaml", run.config_text, yaml.safe_load, yaml.YAMLError)
    text = _text(run, run.path / "manifest.json")
    run.manifest = _mapping(run, "manifest.json", text, json.loads, json.JSONDecodeError)
    notes = run.path / "prompts" / "notes.json"
    if notes.is_file():
        found = _mapping(
            run, "prompts/notes.json", _text(run, notes), json.loads, json.JSONDecodeError
        )
        run.notes = [str(line) for line in found.get("lines") or []]


def _text(run: RunData, path: Path) -> str:
    if not path.is_file():
        run.missing.append(f"{path.relative_to(run.path)} is not there")
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _mapping(
    run: RunData, name: str, text: str, parse: Any, error: type[Exception]
) -> dict[str, Any]:
    try:
        value = parse(text) if text else {}
    except error:
        run.missing.append(f"{name} cannot be parsed")
        return {}
    return value if isinstance(value, dict) else {}


def _arms(run: RunData) -> list[str]:
    choices = [run.setting("selection", "strategy"), *(run.setting("baselines") or [])]
    planned = [slug(name) for name in map(name_in, choices) if name]
    folders = sorted(p.name for p in run.path.glob("arms/*") if p.is_dir() and p.suffix != ".part")
    seen = [r["arm"] for r in run.metrics if r.get("arm")]
    return list(dict.fromkeys([*planned, *folders, *seen]))


def _stages(run: RunData, arm: str) -> list[StageFiles]:
    folders = [p for p in run.path.glob(f"arms/{arm}/stages/*") if p.is_dir() and p.name.isdigit()]
    ordered = sorted(folders, key=lambda p: int(p.name))
    return [StageFiles(int(p.name), _scores(run, p), _selection(run, p)) for p in ordered]


def _scores(run: RunData, folder: Path) -> InfluenceEstimate | None:
    table = table_of(run, folder / "scores.parquet")
    if table is None:
        return None
    try:
        return scores_from(table, folder / "scores.parquet").scored()
    except InputError as error:
        run.missing.append(str(error))
        return None


def _selection(run: RunData, folder: Path) -> Selection | None:
    table = table_of(run, folder / "selection.parquet")
    if table is None:
        return None
    ordered = table.sort_by("rank") if "rank" in table.column_names else table
    notes = json.loads((table.schema.metadata or {}).get(b"cropi.notes", b"[]"))
    ids = [str(i) for i in ordered["prompt_id"].to_pylist()]
    return Selection(
        ids, _column(ordered, "score").astype(np.float64), notes=[str(n) for n in notes]
    )


def _column(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan, dtype=np.float32)
    return table[name].to_numpy().astype(np.float32)


def _read_pool(run: RunData) -> None:
    prompts = table_of(run, run.path / "prompts" / "pool.parquet", ["prompt_id", "source"])
    if prompts is None:
        run.missing.append("prompts/pool.parquet is not there")
    else:
        ids, names = prompts["prompt_id"].to_pylist(), prompts["source"].to_pylist()
        run.sources = {str(i): str(s) for i, s in zip(ids, names, strict=True)}
    run.rollouts = _facts(run, run.path / "rollouts" / "pool.parquet")
    if not (run.path / "rollouts" / "pool.parquet").is_file():
        run.missing.append("rollouts/pool.parquet is not there")
    for path in sorted(run.path.glob("rollouts/validation/*.parquet")):
        if (facts := _facts(run, path)) is not None:
            run.validation[path.stem] = facts


def _facts(run: RunData, path: Path) -> RolloutFacts | None:
    if not path.is_file():
        return None
    try:
        return rollout_facts(path)
    except (pa.ArrowException, OSError, KeyError) as error:
        run.missing.append(_unreadable(run, path, error))
        return None


def _unreadable(run: RunData, path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path.relative_to(run.path)} cannot be read: {reason}"


def table_of(
    run: RunData, path: Path, columns: list[str] | None = None, ids: Iterable[str] | None = None
) -> pa.Table | None:
    """Read columns of a Parquet file, of some prompts if `ids` are given; None without a file."""
    if not path.is_file():
        return None
    wanted = None if ids is None else [("prompt_id", "in", list(ids))]
    try:
        present = pq.read_schema(path).names
        chosen = None if columns is None else [c for c in columns if c in present]
        return pq.read_table(path, columns=chosen, filters=wanted, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        run.missing.append(_unreadable(run, path, error))
        return None
