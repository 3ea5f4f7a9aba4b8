"""The folder that a ranking leaves behind.

ranked.parquet      every prompt of the pool, best first
selection.parquet   the prompts to train on next, in cropi's own format
control.parquet     as many drawn at random: train on both to see what the ranking is worth
prompts.parquet     the pool, with every column of its rows
TRAINER/            selection and control as a trainer reads them, and how to start
ranking.json        what it was made from, and warnings
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.exchange.exports import export_selection, trainers
from cropi.exchange.exports.folder import EXPORT_RECORD, Exported
from cropi.exchange.ranking.ranked_table import write_ranked
from cropi.exchange.ranking.ranking import Ranking
from cropi.plugins import resolve_name, slug
from cropi.prompts import write_prompts
from cropi.schema import Selection
from cropi.store.files import remove, require_writable, strict_json, write_json
from cropi.store.tables import write_selection
from cropi.text import plural

RANKED, RECORD, TARGETS = "ranked.parquet", "ranking.json", "targets"
FILES = (RANKED, RECORD, "selection.parquet", "control.parquet", "prompts.parquet", "report.html")


def require_trainer(name: str | None) -> None:
    """Raise InputError unless there is a trainer of that name to export to."""
    if name is not None:
        resolve_name("export", name)


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


def remove_earlier(out: Path, exported: str) -> None:
    """Remove what an earlier ranking left, but for its targets' responses and the new export."""
    exports = [name for name in trainers() if (out / name / EXPORT_RECORD).is_file()]
    for name in (*FILES, *(name for name in exports if name != exported)):
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

    Without a name it is the trainer whose log this is, or plain JSON lines. Where the log holds no
    prompts that a trainer can be given, nothing is written and a note says so. What an earlier
    ranking left is removed. Raises InputError if the user asked for an export that cannot be.
    """
    logged = ranking.logged
    name = trainer or (logged.log.format if logged.log.format in trainers() else "jsonl")
    try:
        exported = _exported(out / slug(name), ranking, name, seed, model)
    except InputError as error:
        if trainer is not None:
            raise
        if str(error) not in ranking.notes:
            ranking.notes.append(f"nothing was exported: {error}")
        exported = None
    remove_earlier(out, slug(name) if exported else "")
    return [exported.command] if exported else []


def _exported(out: Path, ranking: Ranking, trainer: str, seed: int, model: str) -> Exported | None:
    """The export of a ranking; None where nothing is selected, or there are no whole prompts."""
    logged = ranking.logged
    if not ranking.selection.prompt_ids:
        return None
    if not logged.pairing.complete:
        raise InputError(logged.pairing.notes[0])
    if without := sum(not prompt.answer for prompt in logged.prompts):
        ranking.notes.append(
            f"{plural(without, 'prompt')} without an answer in the log, which the exported rewards "
            "cannot judge; give --prompts with the rows of your data"
        )
    exported = export_selection(
        ranking.selection, logged.prompts, trainer, out, seed=seed, model=model
    )
    ranking.notes += exported.notes
    return exported
