"""CROPI: train language models with verifiable rewards on a tenth of the data.

Curriculum RL with off-policy influence guidance (arXiv 2510.26491). The command line is `cropi`;
the same functions are here, each from the package that it is about, and their settings are in
`cropi.config`. They are loaded when they are used, so that `import cropi` stays light: nothing here
imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from cropi.config import RunConfig, load_config
    from cropi.errors import InputError
    from cropi.evaluation.pass_at_k import evaluate
    from cropi.influence.features import score_features
    from cropi.influence.setup import extract_features, score
    from cropi.policy.loading import load_model, load_policy
    from cropi.progress import ProgressReporter
    from cropi.prompts import load_prompts
    from cropi.rollouts import judge, read_rollouts, rollout
    from cropi.selection import select
    from cropi.store.tables import read_scores, read_selection, write_scores, write_selection
    from cropi.training import train

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "RunConfig",
    "__version__",
    "evaluate",
    "extract_features",
    "judge",
    "load_config",
    "load_model",
    "load_policy",
    "load_prompts",
    "read_rollouts",
    "read_scores",
    "read_selection",
    "rollout",
    "run",
    "score",
    "score_features",
    "select",
    "train",
    "write_scores",
    "write_selection",
]

_HOMES = {
    "InputError": "cropi.errors",
    "RunConfig": "cropi.config",
    "evaluate": "cropi.evaluation.pass_at_k",
    "extract_features": "cropi.influence.setup",
    "judge": "cropi.rollouts",
    "load_config": "cropi.config",
    "load_model": "cropi.policy.loading",
    "load_policy": "cropi.policy.loading",
    "load_prompts": "cropi.prompts",
    "read_rollouts": "cropi.rollouts",
    "read_scores": "cropi.store.tables",
    "read_selection": "cropi.store.tables",
    "rollout": "cropi.rollouts",
    "score": "cropi.influence.setup",
    "score_features": "cropi.influence.features",
    "select": "cropi.selection",
    "train": "cropi.training",
    "write_scores": "cropi.store.tables",
    "write_selection": "cropi.store.tables",
}
"""Where each name is defined."""


def run(
    config: RunConfig, base: Path | None = None, reporter: ProgressReporter | None = None
) -> Path:
    """Run the curriculum and its baselines, and write report.html; return the run directory.

    Relative paths in the config start from the current directory, or else from `base`. A run that
    was killed continues where it stopped. Raises InputError for anything in the config, the prompts
    or the model that cannot be used.
    """
    from cropi.arguments import require_kind
    from cropi.config import RunConfig
    from cropi.errors import require_supported_system

    require_supported_system()
    require_kind(config, RunConfig, "config", "give cropi.load_config(path or preset)")
    from cropi.config.check import require_usable

    require_usable(config, base)
    from cropi.curriculum.loop import run as run_curriculum
    from cropi.progress import ProgressReporter
    from cropi.report import write_run_report
    from cropi.store.mirror import exclusive_run

    reporter = reporter or ProgressReporter()
    with exclusive_run(config.directory, config.url):
        directory = run_curriculum(config, base, reporter)
        with reporter.phase("report") as bar:
            bar.note = str(write_run_report(directory))
    return directory


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cropi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
