"""CROPI: train language models with verifiable rewards on a tenth of the data.

Curriculum RL with off-policy influence guidance (arXiv 2510.26491). The command line is `cropi`;
the same steps are in `cropi.api`, which this package offers lazily, so that `import cropi` stays
light: nothing here imports torch until a step is used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "RunConfig",
    "__version__",
    "evaluate",
    "load_config",
    "load_policy",
    "read_rollouts",
    "rollout",
    "run",
    "score",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cropi import api

        return getattr(api, name)
    raise AttributeError(f"module 'cropi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
