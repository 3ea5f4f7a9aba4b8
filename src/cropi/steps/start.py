"""Step 2: the policy to start from, warmed up and with adapters where the config says so."""

from __future__ import annotations

from cropi.prompts import load_source
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
    seed = session.seed("warmup", "prompts")
    return [p for source in sources for p in load_source(source, seed, session.directory.base)]
