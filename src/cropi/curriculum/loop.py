"""The method in one loop (docs/method.md, arXiv 2510.26491 algorithm 1).

Rollouts are collected once, from the start policy. Before every stage, influence is computed
under the *current* policy from those same rollouts (or, where the config asks for it, from those
with stale ones sampled again); the best prompts are selected; GRPO trains on them for a stage;
and so on. Baselines go through the same loop with another strategy.

Every step below leaves a file and does nothing if that file is there and was made from the same
inputs, so a run that was killed anywhere goes on by being run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cropi.config import RunConfig, resolve_model_path
from cropi.curriculum.check_settings import check_settings
from cropi.curriculum.collect_rollouts import collect_rollouts
from cropi.curriculum.measure_accuracy import evaluate_start
from cropi.curriculum.old_checkpoints import prune_checkpoints
from cropi.curriculum.prepare_prompts import load_prompts
from cropi.curriculum.refresh_rollouts import refresh
from cropi.curriculum.score_prompts import score
from cropi.curriculum.select_prompts import select
from cropi.curriculum.session import Session
from cropi.curriculum.start_policy import prepare_start
from cropi.curriculum.train_stage import train
from cropi.curriculum.write_report import write_report
from cropi.progress import ProgressReporter
from cropi.selection.settings import StrategyChoice
from cropi.store.lock import exclusive_lock
from cropi.store.run_directory import RunDirectory


def run(
    config: RunConfig, base: Path | None = None, reporter: ProgressReporter | None = None
) -> Path:
    """Run the curriculum, its baselines and the report; return the run directory.

    `base` is where relative paths in the config start, beside the current directory. Raises
    InputError for anything in the config, the prompts or the model that cannot be used.
    """
    with opened(config, base, reporter) as session:
        start = prepare(session)
        for strategy in config.strategies:
            train_curriculum(session, strategy, start)
        write_report(session)
        return session.directory.root


@contextmanager
def opened(
    config: RunConfig, base: Path | None, reporter: ProgressReporter | None
) -> Iterator[Session]:
    """Open the run's directory, with settings checked, and work in it alone."""
    reporter, config = reporter or ProgressReporter(), resolve_model_path(config, base)
    check_settings(config, base, reporter)
    with (
        exclusive_lock(config.directory),
        Session(RunDirectory.open(config, base), reporter) as session,
    ):
        yield session


def prepare(session: Session) -> str:
    """Everything that all arms share: prompts, start policy, its accuracy and its rollouts."""
    load_prompts(session)
    start = prepare_start(session)
    evaluate_start(session, start)
    collect_rollouts(session, start)
    return start


def train_curriculum(session: Session, choice: StrategyChoice, start: str) -> str:
    """Train with a strategy through all stages; return its last policy's path."""
    needs = session.needs(choice)
    policy = start
    for index in range(session.config.curriculum.stages):
        stage = session.directory.stage(choice.slug, index)
        rollouts = refresh(session, stage, needs, policy)
        scores = score(session, stage, needs, policy, rollouts)
        selection = select(session, stage, choice, scores, rollouts)
        policy = train(session, stage, selection, policy, needs.dynamic_sampling)
        prune_checkpoints(session, stage)
    return policy
