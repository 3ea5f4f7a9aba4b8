"""Dynamic sampling: the whole pool, but only groups that can teach something are trained on.

DAPO (arXiv 2503.14476, section 3.2): groups whose rewards are all equal are dropped after they
were sampled, and further prompts are sampled until the step is full. What that costs counts.
"""

from __future__ import annotations

from cropi.plugins import plugin
from cropi.selection.full import Full


@plugin("strategy", "dapo")
class Dapo(Full):
    """Full data with dynamic sampling; the loss stays the config's."""

    dynamic_sampling = True
