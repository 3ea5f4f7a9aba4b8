"""The folder that a ranking leaves behind.

ranked.parquet      every prompt of the pool, best first
selection.parquet   the prompts to train on next, in cropi's own format
control.parquet     as many drawn at random: train on both to see what the ranking is worth
prompts.parquet     the pool, with every column of its rows
TRAINER/            selection and control as a trainer reads them, and how to start
ranking.json        what it was made from, and what deserves doubt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.exchange.exports import export_selection, trainers
from cropi.exchange.exports.folder import EXPORT_RECORD
from cropi.exchange.ranking.ranked_table import write_ranked
from cropi.exchange.ranking.ranking import Ranking
from cropi.prompts import write_prompts
from cropi.schema import Selection
from cropi.store.files import remove, require_writable, strict_json, write_json
from cropi.store.tables import write_selection
from cropi.text import plural

RANKED, RECORD, TARGETS = "ranked.parquet", "ranking.json", "targets"
FILES = (RANKED, RECORD, "selection.parquet", "control.parquet", "prompts.parquet", "report.html")


def require_apart(out: Path, rollouts: Path) -> None:
    """Raise InputError unless `out` can be written, and is neither the rollouts nor above them."""
    inside = rollouts.resolve()
    if out.resolve() in (inside, *inside.parents):
        raise InputError(
            f"--out {out} holds the rollouts themselves ({rollouts}); give a directory of its own"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a directory")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names - {TARGETS} and RECORD not in names:
        raise InputError(
            f"--out {out} holds files that no ranking wrote, and some could be replaced; give a "
            "new directory"
        )
    require_writable(out / RANKED)


def remove_earlier(out: Path) -> None:
    """Remove what an earlier ranking left, except for the responses to its targets."""
    for name in (*FILES, *(name for name in trainers() if (out / name / EXPORT_RECORD).is_file())):
        remove(out / name)


def write_folder(out: Path, ranking: Ranking, about: dict[str, Any]) -> None:
    """Write everything but the exports and the page. Raises InputError if it cannot be written."""
    pool = ranking.logged.prompts
    facts = about | {
        "format": ranking.logged.log.format,
        "strategy": ranking.settings.strategy.model_dump(mode="json"),
        "ratio": ranking.settings.ratio,
        "pool": len(pool),
        "responses": len(ranking.logged.log.responses),
    }
    write_ranked(out / RANKED, ranking, facts)
    if ranking.selection.prompt_ids:
        write_selection(out / "selection.parquet", ranking.selection)
    control = [prompt.prompt_id for prompt in pool if prompt.prompt_id in ranking.control]
    if control:
        write_selection(out / "control.parquet", Selection(control, np.zeros(len(control))))
    write_prompts(out / "prompts.parquet", pool)
    record = {**facts, "counts": dict(ranking.counts), "notes": ranking.notes}
    write_json(out / RECORD, strict_json(record))


def export_ranking(
    out: Path, ranking: Ranking, trainer: str | None, seed: int, model: str = ""
) -> list[str]:
    """Write selection and control as a trainer reads them; return the command that starts it.

    What an earlier ranking left is removed first.

    Without a name it is the trainer whose log this is, or plain JSON lines. Where the log holds no
    prompts that a trainer can be given, nothing is written and a note says so. Raises InputError if
    the user asked for that.
    """
    logged = ranking.logged
    remove_earlier(out)
    if not ranking.selection.prompt_ids:
        return []
    asked, name = trainer is not None, trainer or logged.log.format
    if not logged.pairing.complete:
        if asked:
            raise InputError(f"nothing to export to {name}: {logged.pairing.notes[0]}")
        return []
    name = name if name in trainers() or asked else "jsonl"
    without = sum(not prompt.answer for prompt in logged.prompts)
    if without:
        ranking.notes.append(
            f"{plural(without, 'prompt')} without an answer in the log, which the exported rewards "
            "cannot judge; give --prompts with the rows of your data"
        )
    try:
        exported = export_selection(
            ranking.selection, logged.prompts, name, out / name, seed=seed, model=model
        )
    except InputError as error:
        if asked:
            raise
        ranking.notes.append(f"nothing was exported: {error}")
        return []
    ranking.notes += exported.notes
    return [exported.command]
