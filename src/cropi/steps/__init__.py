"""The steps of a run, in the order in which `curriculum.py` takes them.

Each step leaves a file that knows what it was made from, and returns at once where that file is
current; that is all there is to resuming.
"""

from cropi.steps.evaluation import evaluate_start
from cropi.steps.influence import score
from cropi.steps.keeping import keep_last
from cropi.steps.prompts import load_prompts
from cropi.steps.refresh import refresh
from cropi.steps.report import write_report
from cropi.steps.rollouts import collect_rollouts
from cropi.steps.selection import select
from cropi.steps.session import Session
from cropi.steps.settings import check_settings
from cropi.steps.start import prepare_start
from cropi.steps.training import train

__all__ = [
    "Session",
    "check_settings",
    "collect_rollouts",
    "evaluate_start",
    "keep_last",
    "load_prompts",
    "prepare_start",
    "refresh",
    "score",
    "select",
    "train",
    "write_report",
]
