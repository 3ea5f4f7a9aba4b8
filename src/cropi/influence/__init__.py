"""Optimizer-aware influence: directions scaled by Adam's second moments.

Read in this order: `preconditioner` (what is computed, and why), `moments` (second moments by
parameter name), `saved` (the optimizer's file), `grouping` (whose a number in that file is).
"""

from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.policy.optimizer_state import SecondMoments, second_moments

__all__ = ["Preconditioner", "PreconditioningConsumer", "SecondMoments", "second_moments"]
