"""The steps of a run, in the order in which `curriculum.py` takes them.

Each step leaves a file that knows what it was made from, and returns at once where that file is
current; that is all there is to resuming.
"""

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

__all__ = [
    "Session",
    "check_settings",
    "collect_rollouts",
    "evaluate_start",
    "load_prompts",
    "prepare_start",
    "prune_checkpoints",
    "refresh",
    "score",
    "select",
    "train",
    "write_report",
]
