"""Peak memory against what it should be, and the longest group of responses that fits."""

from __future__ import annotations

from typing import Any

from cropi.errors import InputError
from gpu_parts.place import Figures, Place
from gradient_costs import ours
from gradient_costs.memory import beyond_forecast, measured
from gradient_costs.rollouts import Sizes, random_groups, synthetic
from gradient_costs.setting import Setting
from gradient_costs.timing import timed

WHAT = ("floor", "exact", "exact_shared")
PROMPTS = 4
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32256)
"""Tokens of a response; with its prompt the longest just fits Qwen2.5's context."""


def memory(place: Place) -> Figures:
    """Peaks beyond the model; exact influence's over targets, activations and the largest layer."""
    setting, prompts = Setting("Qwen2.5-1.5B", place.qwen()), place.prompts(PROMPTS)
    peaks: dict[str, dict[str, float]] = {}
    for what in WHAT:
        peaks[what] = measured(setting, what, prompts, place.sizes)
        yield f"bytes of {what}", peaks[what]
        if what == "floor":
            continue
        beyond = beyond_forecast(peaks["floor"], peaks[what], prompts)
        needed = peaks[what]["peak"] - peaks[what]["targets"]
        per_token = needed / (prompts * positions(place.sizes, what))
        layers = setting.model.config.num_hidden_layers
        yield what, {**beyond, "bytes_per_position_and_layer": per_token / layers}


def positions(sizes: Sizes, what: str) -> int:
    """Positions of one prompt that go through the model; a response's last token does not."""
    prompt = sizes.prompt if what == "exact_shared" else sizes.prompt * sizes.responses
    return prompt + (sizes.response - 1) * sizes.responses


def longest_group(place: Place) -> Figures:
    """Seconds of one prompt with 8 responses of growing length, until it does not fit."""
    model = place.qwen()
    small = synthetic(model, 1, Sizes(8, 2, 4), seed=1)
    for checkpointing in (False, True):
        scorer = ours.exact_scorer(model, share_prefix=True, checkpointing=checkpointing)
        directions = ours.target_directions(scorer, {"target": small})
        ours.exact_pass(scorer, directions, small)
        name = "with checkpointing" if checkpointing else "without checkpointing"
        yield from growing(
            place, name, model, lambda g, s=scorer, d=directions: timed_pass(s, d, g)
        )


def timed_pass(scorer: Any, directions: Any, groups: Any) -> float:
    """Seconds of one exact pass."""
    return timed(lambda: ours.exact_pass(scorer, directions, groups))


def growing(place: Place, name: str, model: Any, seconds_of: Any) -> Figures:
    """One length after the other; the reason why there is no longer one."""
    seconds: dict[str, float] = {}
    for length in (16, 32) if place.tiny else LENGTHS:
        if seconds and place.seconds_left < 8 * list(seconds.values())[-1]:
            yield f"{name}, ended by", "time"
            return
        groups = random_groups(model, 1, Sizes(512 if not place.tiny else 8, 8, length), seed=0)
        try:
            seconds[str(length)] = seconds_of(groups)
        except InputError as error:
            yield f"{name}, ended by", str(error)
            return
        yield name, seconds
