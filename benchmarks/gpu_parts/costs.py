"""What exact influence and sketches cost, next to plain forward and backward of the same rows.

Everybody takes turns, round by round; after every round the medians so far are given, so that a
part which is cut off has them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from gpu_parts.place import Figures, Place
from gradient_costs import memory, ours
from gradient_costs.floor import Floor
from gradient_costs.plan import SMALL
from gradient_costs.rollouts import synthetic, unpacked_tokens
from gradient_costs.timing import Contender, fastest, timed

ROUNDS = 7
TARGETS = 2
MICRO_BATCHES = (16, 32, 64)
BATCH_TOKENS = 8192
"""Padded positions at once: by the forecast (`bar.py`) twice as many, and the directions of two
targets, would fill 80 GB."""


def qwen(place: Place) -> Figures:
    """Exact influence with two targets, by rows and with shared prompts, on Qwen2.5-1.5B."""
    yield from influence(place, place.qwen(), place.prompts(32))


def smollm2(place: Place) -> Figures:
    """The same on SmolLM2-135M."""
    name, model = place.smollm2()
    yield "model", name
    yield from influence(place, model, place.prompts(64))


def influence(place: Place, model: Any, prompts: int) -> Figures:
    """Costs of exact influence and of its pass over a target."""
    groups = synthetic(model, prompts, place.sizes, seed=0)
    targets = target_groups(model)
    micros = (2,) if place.tiny else MICRO_BATCHES
    candidates = [(rows, "sdpa") for rows in micros]
    micro, attention = fastest(candidates, lambda each: Floor(model, groups, *each).run)
    yield "floor's micro-batch", micro
    floor = Floor(model, groups, micro, attention)
    scorers = ours.Scorers.of(model, BATCH_TOKENS)
    calls = ours.passes(scorers, targets, groups, dim=8192, sketches=())
    contenders = [Contender(name, call, ROUNDS, prompts) for name, call in calls.items()]
    contenders.insert(0, Contender("floor", floor.run, ROUNDS, prompts))
    yield from taking_turns(place, contenders, "floor", unpacked_tokens(groups) / prompts)


def sketches(place: Place) -> Figures:
    """Sketches of 8,192 dimensions and gradient checkpointing, next to exact influence."""
    model, prompts = place.qwen(), place.prompts(32)
    groups = synthetic(model, prompts, place.sizes, seed=0)
    targets = target_groups(model)
    recomputing = ours.exact_scorer(model, True, BATCH_TOKENS, checkpointing=True)
    dim, kinds = (64, ours.SKETCHES[:1]) if place.tiny else (8192, ours.SKETCHES)
    calls = ours.passes(ours.Scorers.of(model, BATCH_TOKENS), targets, groups, dim, kinds)
    del calls["exact"], calls["targets"]
    directions = ours.target_directions(recomputing, targets)
    calls["checkpointing"] = lambda: ours.exact_pass(recomputing, directions, groups)
    calls["checkpointing"]()
    for name in ("exact_shared", "checkpointing"):
        before = memory.settled()
        calls[name]()
        yield f"peak bytes of {name}", memory.peak() - before
    contenders = [Contender(name, call, ROUNDS, prompts) for name, call in calls.items()]
    tokens = unpacked_tokens(groups) / prompts
    yield from taking_turns(place, contenders, "exact_shared", tokens)


def target_groups(model: Any) -> dict[str, Any]:
    """Small rollouts for each target: their directions have to be there, no more."""
    return {f"target {n}": synthetic(model, 1, SMALL, seed=1 + n) for n in range(TARGETS)}


def taking_turns(
    place: Place, contenders: Sequence[Contender], basis: str, tokens: float
) -> Figures:
    """Rounds until there have been enough or time runs out; medians, and ratios to `basis`."""
    for contender in contenders:
        timed(contender.run)
    for done in range(1 if place.tiny else ROUNDS):
        if done and place.seconds_left < sum(c.seconds[-1] for c in contenders):
            return
        for contender in contenders if done % 2 == 0 else reversed(contenders):
            contender.turn()
        median = {c.name: c.median for c in contenders}
        yield "rounds", done + 1
        yield "seconds_per_prompt", median
        yield "tokens_per_second", {name: tokens / each for name, each in median.items()}
        yield f"over_{basis}", {name: each / median[basis] for name, each in median.items()}
        yield "spread", {c.name: spread(c.seconds) for c in contenders}


def spread(seconds: Sequence[float]) -> float:
    """Most over least, as a share of the median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
