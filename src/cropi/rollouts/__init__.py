"""Rollouts: sampled once, stored with everything that later stages need, never re-tokenised.

`load_engine` finds the sampler, `collect` drives it, `read_rollouts` and `write_rollouts` are the
store. Importing this package loads neither torch nor transformers.
"""

from cropi.rollouts.collect import collect, rollout
from cropi.rollouts.engines.engine import Completion, RolloutEngine, load_engine
from cropi.rollouts.rollout_file import as_groups, read_rollouts, read_side_columns, write_rollouts
from cropi.rollouts.statistics import RolloutStatistics, rollout_statistics

__all__ = [
    "Completion",
    "RolloutEngine",
    "RolloutStatistics",
    "as_groups",
    "collect",
    "load_engine",
    "read_rollouts",
    "read_side_columns",
    "rollout",
    "rollout_statistics",
    "write_rollouts",
]
