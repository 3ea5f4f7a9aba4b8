"""Rollouts: sampled once, stored with everything that later stages need, never re-tokenised.

`load_engine` finds the sampler, `collect.collect` drives it, `read_rollouts` and `write_rollouts`
are the store. Importing this package loads neither torch nor transformers nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropi.rollouts.engines.engine import Completion, RolloutEngine, load_engine
    from cropi.rollouts.rollout_file import read_rollouts, read_side_columns, write_rollouts
    from cropi.rollouts.statistics import RolloutStatistics, rollout_statistics

__all__ = [
    "Completion",
    "RolloutEngine",
    "RolloutStatistics",
    "load_engine",
    "read_rollouts",
    "read_side_columns",
    "rollout_statistics",
    "write_rollouts",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "rollout_file" if name.startswith(("read_", "write_")) else "engines.engine"
    module = "statistics" if name.lower().startswith("rollout") and "tatistics" in name else module
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
