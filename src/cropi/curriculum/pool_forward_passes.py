"""Forward passes over the pool's prompts: hidden states, and pass rates under a later policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import RunLog
from cropi.curriculum.stage_rollouts import replace_groups
from cropi.policy.hidden_states import prompt_hidden_states
from cropi.rollouts import read_rollouts
from cropi.rollouts.current_rates import current_pass_rates, tokens_read
from cropi.schema import RolloutGroup
from cropi.store.cached import cached, stamp
from cropi.store.files import file_hash
from cropi.store.run_directory import Stage
from cropi.store.tables import read_hidden_states, write_hidden_states


@dataclass(frozen=True)
class PoolHiddenStates:
    """Reads the start policy's hidden states at the pool's prompts, once for all stages of an arm.

    Hidden states of later policies tell prompts apart no better, and reading them would cost as
    much as the rest of selection.
    """

    policies: Policies
    log: RunLog

    def read(self, first: Stage, start: str, pool: Sequence[RolloutGroup]) -> NDArray[np.float32]:
        """Return the hidden states [L, P, F] of the start policy at the pool's prompts."""
        directory = self.log.directory
        inputs = (self.policies.key(start), file_hash(directory.prompts("pool")))

        def make(inputs_fingerprint: str) -> None:
            with self.log.phase(f"{first.arm} hidden states", "scoring", first):
                hidden_states = prompt_hidden_states(self.policies.load(start).model, pool)
                ids = [group.prompt_id for group in pool]
                write_hidden_states(
                    first.hidden_states, ids, hidden_states, stamp(inputs_fingerprint)
                )

        return read_hidden_states(cached(first.hidden_states, inputs, make, directory.ledger))


@dataclass(frozen=True)
class CurrentRates:
    """Pass rates [P] of the pool's prompts under a policy, and the tokens read for them."""

    rates: NDArray[np.float64]
    tokens: int


def read_current_rates(
    model: Any,
    pool: Sequence[RolloutGroup],
    files: Sequence[Path],
    threshold: float | None,
    batch_tokens: int | None,
) -> CurrentRates:
    """Estimate the pass rates from each prompt's freshest rollouts.

    `files` hold all rollouts of the pool so far, oldest first, and `threshold` turns rewards into
    passes.
    """
    freshest = freshest_groups(pool, files)
    rates = current_pass_rates(model, freshest, threshold, batch_tokens)
    return CurrentRates(rates, tokens_read(freshest, threshold))


def prompt_tokens(pool: Sequence[RolloutGroup]) -> int:
    """Tokens that a forward pass over the pool's prompts reads."""
    return sum(len(group.prompt_ids) for group in pool)


def freshest_groups(pool: Sequence[RolloutGroup], files: Sequence[Path]) -> list[RolloutGroup]:
    """The newest rollouts of each prompt that have a usable response, else the pool's."""
    groups = list(pool)
    for file in files:
        groups = replace_groups(groups, [g for g in read_rollouts(file) if g.usable])
    return groups
