"""Log-probs of responses whose sampler gave none, from the policy that sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.schema import RolloutGroup


def with_logprobs(model: Any, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Groups whose usable responses have the log-probs that `model` gives their tokens."""
    from cropi.gradients.logprobs import LogprobReader, read_logprobs

    usable = [group for group in groups if group.usable]
    read = iter(read_logprobs(LogprobReader(model), usable) if usable else [])
    return [_filled(group, next(read)) if group.usable else group for group in groups]


def _filled(group: RolloutGroup, logprobs: Sequence[NDArray[Any]]) -> RolloutGroup:
    values = iter(logprobs)
    responses = [
        replace(r, logprobs=np.nan_to_num(next(values)).astype(np.float32).clip(max=0.0))
        if r.usable
        else r
        for r in group.responses
    ]
    return replace(group, responses=responses, logprob_mode="recomputed")
