"""Rollouts: sampled once, stored with everything that later stages need, never re-tokenised.

`load_engine` finds the sampler, `rollout` drives it, `read_rollouts` and `write_rollouts` are the
store. Names are loaded when they are used: importing this package, as reading settings does, loads
neither torch nor transformers nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropi.rollouts.checked_engine import load_engine
    from cropi.rollouts.collect import rollout
    from cropi.rollouts.engines.engine import Completion, RolloutEngine
    from cropi.rollouts.rejudging import Rejudged, judge
    from cropi.rollouts.rollout_file import (
        as_groups,
        read_rollouts,
        read_side_columns,
        write_rollouts,
    )
    from cropi.rollouts.statistics import RolloutStatistics, rollout_statistics

__all__ = [
    "Completion",
    "Rejudged",
    "RolloutEngine",
    "RolloutStatistics",
    "as_groups",
    "judge",
    "load_engine",
    "read_rollouts",
    "read_side_columns",
    "rollout",
    "rollout_statistics",
    "write_rollouts",
]

_HOMES = {
    "Completion": "engines.engine",
    "Rejudged": "rejudging",
    "RolloutEngine": "engines.engine",
    "RolloutStatistics": "statistics",
    "as_groups": "rollout_file",
    "judge": "rejudging",
    "load_engine": "checked_engine",
    "read_rollouts": "rollout_file",
    "read_side_columns": "rollout_file",
    "rollout": "collect",
    "rollout_statistics": "statistics",
    "write_rollouts": "rollout_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
