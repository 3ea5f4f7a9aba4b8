"""Optimizer-aware influence: directions scaled by Adam's second moments.

Read in this order: `preconditioner` (what is computed, and why), `moments` (second moments by
parameter name), `saved` (the optimizer's file), `grouping` (whose a number in that file is).
"""

from cropi.preconditioning.moments import SecondMoments, second_moments
from cropi.preconditioning.preconditioner import Preconditioner, PreconditioningConsumer

__all__ = ["Preconditioner", "PreconditioningConsumer", "SecondMoments", "second_moments"]
