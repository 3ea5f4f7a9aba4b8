"""After a stage: let go of checkpoints that nothing needs any more, where the config says so."""

from __future__ import annotations

import shutil

from cropi.curriculum.session import Session
from cropi.store.files import POLICY_RECORD
from cropi.store.run_directory import Stage

TRAINING_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def prune_checkpoints(session: Session, stage: Stage) -> None:
    """With `curriculum.keep_checkpoints` = last, keep all records and the last stage's weights.

    A stage's weights go once the next stage is there; the optimizer's state goes with the end. The
    records stay, so a finished run still knows that it is finished.
    """
    if session.config.curriculum.keep_checkpoints == "all":
        return
    if stage.index > 0:
        _empty(stage.sibling(stage.index - 1))
    if stage.index == session.config.curriculum.stages - 1:
        for name in TRAINING_STATE:
            (stage.policy / name).unlink(missing_ok=True)


def _empty(stage: Stage) -> None:
    """Remove everything from a policy's folder but its record."""
    for file in stage.policy.iterdir():
        if file.name == POLICY_RECORD:
            continue
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
