"""Rows of a run that may still be being written: what can be read of them, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

from cropi.report.numbers import Row
from cropi.store.files import read_partial_jsonl

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"


def readable_rows(path: Path, root: Path, missing: list[str]) -> list[Row]:
    """Read JSONL whose last line may be half written; a missing file has no rows.

    Lines that cannot be read are left out and told in `missing`, with the file's name in `root`.
    """
    rows, broken = read_partial_jsonl(path)
    if broken:
        missing.append(f"{path.relative_to(root)}: {broken} unreadable line(s) left out")
    return list(rows)


def metrics_rows(run: Path, root: Path, missing: list[str]) -> list[Row]:
    """The rows of a run, and those of stages that have not reached the run's own file yet."""
    rows = readable_rows(run / METRICS, root, missing)
    known = {json.dumps(row, sort_keys=True) for row in rows}
    for file in sorted(run.glob(f"arms/*/stages/*/{METRICS}")):
        late = readable_rows(file, root, missing)
        rows += [row for row in late if json.dumps(row, sort_keys=True) not in known]
    return rows
