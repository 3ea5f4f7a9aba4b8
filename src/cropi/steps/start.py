"""Step 2: the policy to start from, warmed up and with adapters where the config says so."""

from __future__ import annotations

from cropi.errors import InputError
from cropi.prompts import load_source
from cropi.prompts.uniqueness import normalised, question_text
from cropi.schema import Prompt
from cropi.steps.session import Session
from cropi.training import start


def prepare_start(session: Session) -> str:
    """Return the path of the start policy, made if it has to be."""
    config, directory = session.config, session.directory
    if not config.warmup.steps and config.training.lora is None:
        return config.model.path
    with directory.timed("warmup"), session.narrator.phase("start policy") as bar:
        start.prepare_start(
            config,
            _warmup_prompts(session),
            directory.start,
            session.seed("warmup"),
            lambda done, total: bar.update(done, total),
        )
        bar.note = start.describe(config)
    return str(directory.start)


def _warmup_prompts(session: Session) -> list[Prompt]:
    sources = session.config.warmup.prompts
    if not sources:
        return session.sets.pool
    seed, base = session.seed("warmup", "prompts"), session.directory.base
    judged = {_question(p) for found in session.sets.judging() for p in found}
    found = [p for source in sources for p in load_source(source, seed, base)]
    kept = [p for p in found if _question(p) not in judged]
    if not kept:
        raise InputError(
            f"all {len(found)} of warmup.prompts stand in validation or test too, and imitating "
            "those would spoil them; give prompts of their own"
        )
    return kept


def _question(prompt: Prompt) -> str:
    return normalised(question_text(prompt, None))
