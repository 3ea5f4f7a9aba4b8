"""The folder that a ranking leaves behind.

ranked.parquet      every prompt of the pool, best first
selection.parquet   the prompts to train on next, in cropi's own format
control.parquet     as many drawn at random: train on both to see what the ranking is worth
prompts.parquet     the pool, with every column of its rows
ranking.json        what it was made from, and what deserves doubt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.exchange.ranking.ranked_table import write_ranked
from cropi.exchange.ranking.ranking import Ranking
from cropi.prompts import write_prompts
from cropi.schema import Selection
from cropi.store.files import require_writable, strict_json, write_json
from cropi.store.tables import write_selection

RANKED = "ranked.parquet"


def require_apart(out: Path, rollouts: Path) -> None:
    """Raise InputError unless `out` can be written, and is neither the rollouts nor above them."""
    inside = rollouts.resolve()
    if out.resolve() in (inside, *inside.parents):
        raise InputError(
            f"--out {out} holds the rollouts themselves ({rollouts}); give a directory of its own"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a directory")
    require_writable(out / RANKED)


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
    write_selection(out / "selection.parquet", ranking.selection)
    control = [prompt.prompt_id for prompt in pool if prompt.prompt_id in ranking.control]
    write_selection(out / "control.parquet", Selection(control, np.zeros(len(control))))
    write_prompts(out / "prompts.parquet", pool)
    record = {**facts, "counts": dict(ranking.counts), "notes": ranking.notes}
    write_json(out / "ranking.json", strict_json(record))
