"""Step 2: the policy to start from, warmed up and with adapters where the config says so."""

from __future__ import annotations

from pathlib import Path

from cropi.curriculum.session import Session
from cropi.errors import InputError
from cropi.prompts import PromptSets, load_source
from cropi.prompts.sets import normalised, question_text
from cropi.schema import Prompt
from cropi.training import warmup
from cropi.training.settings import WarmupConfig


def prepare_start(session: Session) -> str:
    """Return the path of the start policy, made if it has to be."""
    config, directory = session.config, session.directory
    if not config.warmup.steps and config.training.lora is None:
        return config.model.path
    seed = session.seed("warmup", "prompts")
    prompts = warmup_prompts(config.warmup, session.sets, seed, directory.base)
    with directory.timed("warmup"), session.reporter.phase("start policy") as bar:
        warmup.prepare_start(
            config,
            prompts,
            directory.start,
            session.seed("warmup"),
            lambda done, total: bar.update(done, total),
        )
        bar.note = warmup.describe(config)
    return str(directory.start)


def warmup_prompts(
    config: WarmupConfig, sets: PromptSets, seed: int, base: Path | None = None
) -> list[Prompt]:
    """Return the prompts to imitate the answers of: the pool, or those of `config.prompts`.

    Raises InputError if all of those are questions of a validation or test set: they are left out.
    """
    if not config.prompts:
        return sets.pool
    judged = {_question(p) for found in sets.heldout_sets() for p in found}
    found = [p for source in config.prompts for p in load_source(source, seed, base)]
    kept = [p for p in found if _question(p) not in judged]
    if not kept:
        raise InputError(
            f"all {len(found)} of warmup.prompts stand in validation or test too, and imitating "
            "those would spoil them; give prompts of their own"
        )
    return kept


def _question(prompt: Prompt) -> str:
    return normalised(question_text(prompt, None))
