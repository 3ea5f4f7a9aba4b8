"""The prompts of a set that have a gradient, and how far a phase over them is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cropi.errors import InputError
from cropi.schema import UNSCORED, RolloutGroup

PhaseProgress = Callable[[str, int, int], None]
"""Called with a phase's name, the prompts done and the prompts in all."""


@dataclass(frozen=True)
class InformativeGroups:
    """Informative prompts of a set, and how many others there are, by reason."""

    groups: list[RolloutGroup]
    skipped: dict[str, int]


def keep_informative(groups: Sequence[RolloutGroup]) -> InformativeGroups:
    """Keep the prompts that have a gradient; count the others by reason."""
    counts = Counter(group.score_status for group in groups)
    skipped = {reason: counts[reason] for reason in UNSCORED if counts[reason]}
    return InformativeGroups([group for group in groups if group.informative], skipped)


def require_informative(what: str, groups: Sequence[RolloutGroup]) -> InformativeGroups:
    """Keep the prompts that have a gradient. Raises InputError if `what` has none."""
    informative = keep_informative(groups)
    if not informative.groups:
        counts = informative.skipped.items()
        reasons = ", ".join(f"{n} with {reason}" for reason, n in counts) or "no prompt at all"
        raise InputError(
            f"{what} has no informative prompt among {len(groups)} ({reasons}); it needs a prompt "
            "with both better and worse responses: add prompts, sample more responses, or choose "
            "tasks the policy sometimes solves"
        )
    return informative


def hash_sample(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    """A random but fixed choice of prompts: those whose ids have the lowest hashes."""

    def hash_of_id(group: RolloutGroup) -> str:
        return hashlib.sha256(group.prompt_id.encode()).hexdigest()

    return sorted(groups, key=hash_of_id)[:count]


def progress_counter(progress: PhaseProgress, phase: str, total: int) -> Callable[[int], None]:
    """A callback that adds up the prompts it is given, and reports how far a phase is."""
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress(phase, done, total)

    return advance
