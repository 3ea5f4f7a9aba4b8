"""The method in one loop (docs/method.md, arXiv 2510.26491 algorithm 1).

Rollouts are collected once, from the start policy. Before every stage, influence is computed
under the *current* policy from those same rollouts; the best prompts are selected; GRPO trains on
them for a stage; and so on. Baselines go through the same loop with another strategy.

Every step below leaves a file and does nothing if that file is there and was made from the same
inputs, so a run that was killed anywhere goes on by being run again.
"""

from __future__ import annotations

from pathlib import Path

from cropi.config import RunConfig
from cropi.progress import Narrator
from cropi.run_directory import RunDirectory
from cropi.selection import find_strategy
from cropi.steps import (
    Session,
    check_settings,
    collect_rollouts,
    evaluate_start,
    load_prompts,
    prepare_start,
    score,
    select,
    train,
    write_report,
)


def run(config: RunConfig, base: Path | None = None, narrator: Narrator | None = None) -> Path:
    """Run the curriculum, its baselines and the report; return the run directory.

    `base` is where relative paths in the config start, beside the current directory. Raises
    InputError for anything in the config, the prompts or the model that cannot be used.
    """
    narrator = narrator or Narrator()
    check_settings(config, base, narrator)
    directory = RunDirectory.open(config, base)
    with Session(directory, narrator) as session:
        load_prompts(session)
        start = prepare_start(session)
        evaluate_start(session, start)
        collect_rollouts(session, start)
        for name in config.strategies:
            train_curriculum(session, name, start)
        write_report(session)
    return directory.root


def train_curriculum(session: Session, name: str, start: str) -> str:
    """Train the strategy called `name` through all stages; return its last policy's path."""
    strategy = find_strategy(name)
    policy = start
    for index in range(session.config.training.stages):
        stage = session.directory.stage(name, index)
        scores = score(session, stage, strategy, policy)
        selection = select(session, stage, strategy, scores)
        policy = train(session, stage, selection, policy)
    return policy
