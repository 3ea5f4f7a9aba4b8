"""A whole pool: the naive design on every prompt of it, ours on the informative ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from cropi.schema import RolloutGroup
from gradient_costs import ours, rollouts
from gradient_costs.naive import Naive
from gradient_costs.plan import SMALL, Run
from gradient_costs.rollouts import synthetic
from gradient_costs.timing import Contender, interleave


def costs(this: Run, micro: int, one_prompt: dict[str, float]) -> dict[str, Any]:
    """Seconds of both for the whole pool, exact influence with shared prompts being ours.

    `one_prompt` are the naive design's seconds on one prompt, for a plan that runs it on no pool.
    """
    groups, kind = pool_of(this)
    informative = [g for g in groups if g.informative]
    this.say(f"pool: {kind}; {len(informative)} of {len(groups)} prompts are informative")
    naive, scorer = Naive(this.model, micro), this.scorers.shared
    small = synthetic(this.model, 1, SMALL, seed=1)
    directions = ours.target_directions(scorer, {"one": small, "two": small})
    rounds = this.plan.pool_repetitions
    slow = Contender("naive", lambda: [naive.run(g) for g in groups], rounds)
    fast = Contender("ours", lambda: ours.exact_pass(scorer, directions, informative), rounds)
    interleave([slow, fast] if this.plan.naive_pool else [fast], this.say)
    if not this.plan.naive_pool:
        slow.seconds = [len(groups) * one_prompt[key] for key in ("min", "median", "max")]
        kind += ", the naive design's cost taken from one prompt of that size"
    this.model.zero_grad(set_to_none=True)
    return {
        "kind": kind,
        "prompts": len(groups),
        "informative": len(informative),
        "distinct_responses": distinct(informative),
        "naive": slow.spread,
        "ours": fast.spread,
        "naive_over_ours": slow.median / fast.median,
    }


def pool_of(this: Run) -> tuple[list[RolloutGroup], str]:
    """The pool to be scored, and what it is made of."""
    options, count = this.options, this.plan.pool
    name = options.model or ("smollm2" if this.setting.name == "smollm2" else None)
    if options.gsm8k and name and not options.quick and not options.pocket:
        device = this.setting.device.type
        groups = rollouts.real_pool(name, count, options.gsm8k, options.cache, device)
        return groups, f"GSM8K's prompts, responses sampled from {name}, rewards drawn"
    groups = synthetic(this.model, count, this.sizes, 9, rollouts.UNINFORMATIVE)
    return groups, "synthetic prompts, responses and rewards"


def distinct(groups: list[RolloutGroup]) -> float:
    """Mean share of distinct responses in a group."""
    return float(
        np.mean([len({r.ids.tobytes() for r in g.responses}) / len(g.responses) for g in groups])
    )
