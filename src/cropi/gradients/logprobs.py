"""Log-probs of stored responses under a policy: forward passes only, prompts shared.

The batches are those of the gradients (`gradients.batching`): a prompt once for all its responses
where the model's attention supports it, equal responses once, logits only where a policy token is
predicted. As there, the fast path is first compared with the plain one on a short prompt; a model
for which they disagree is read one response at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cropi.gradients import Unsupported
from cropi.gradients.batching import ROWS, BatchPlanner, ForwardMode, LongGroup
from cropi.gradients.bounds import current_rewards, range_codes
from cropi.gradients.collation import PreparedGroup, PromptBatch, collate, prepare
from cropi.gradients.forward import (
    evaluation_mode,
    forward_logits,
    in_float32,
    log_probs,
    require_fitting,
    usable_logprobs,
)
from cropi.gradients.long_groups import part_logprobs
from cropi.gradients.objective import objective
from cropi.gradients.self_check import exercises_block_mask, require_covered, unique_logprobs
from cropi.gradients.settings import ObjectiveConfig
from cropi.progress import Advance
from cropi.schema import RolloutGroup

FP32_NATS, BF16_NATS = 1e-3, 0.25
"""Nats by which a log-prob may differ between the fast and the plain path."""

"""Called with the number of prompts that were read since its last call."""


@dataclass
class LogprobReader:
    """Reads log-probs of stored responses under `model`, many prompts per forward pass.

    `path` is set by the first batch: "shared" (a prompt once for all its responses), "rows" (one
    row per response) or "plain" (one response at a time).
    """

    model: nn.Module
    batch_tokens: int | None = None
    share_prefix: bool = True
    path: str = field(default="", init=False)
    planner: BatchPlanner = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.planner = BatchPlanner(self.model, self.batch_tokens, self.share_prefix)

    def batches(
        self, groups: Sequence[RolloutGroup], advance: Advance | None = None
    ) -> Iterator[tuple[PromptBatch, Tensor]]:
        """Yield batches with the log-probs of their usable responses, float64 [R, T].

        T are the policy's tokens; padding is 0. Every group needs a usable response;
        `batch.index_P` are indices into `groups`. Raises InputError for rollouts that the model
        cannot have sampled.
        """
        require_fitting(self.model, groups)
        prepared = [prepare(n, g) for n, g in enumerate(groups)]
        with torch.inference_mode(), evaluation_mode(self.model):
            self.path = self.path or self._choose_path(prepared)
            for batch, logp_RT in self._pairs(prepared):
                yield batch, logp_RT
                if advance:
                    advance(batch.prompts)

    def _pairs(self, prepared: Sequence[PreparedGroup]) -> Iterator[tuple[PromptBatch, Tensor]]:
        if self.path == "plain":
            yield from (self._read_plainly(group) for group in prepared)
            return
        fitting, long = self.planner.separate(prepared)
        yield from (self._read_in_parts(group) for group in long)
        for members, mode in self.planner.batches(fitting):
            yield self._read(members, mode)

    def _read(
        self, members: Sequence[PreparedGroup], mode: ForwardMode
    ) -> tuple[PromptBatch, Tensor]:
        with self.planner.batch(members, mode) as batch:
            return batch, batch_logprobs(self.model, batch)

    def _read_in_parts(self, long: LongGroup) -> tuple[PromptBatch, Tensor]:
        batch = collate([long.group], False, self.planner.device)
        logp_RT = usable_logprobs(part_logprobs(self.model, self.planner, long), batch)
        return batch, logp_RT.masked_fill(~batch.responses.mask_RT, 0.0)

    def _read_plainly(self, group: PreparedGroup) -> tuple[PromptBatch, Tensor]:
        batch = collate([group], False, self.planner.device)
        return batch, plain_logprobs(self.model, group)

    def _choose_path(self, prepared: Sequence[PreparedGroup]) -> str:
        """The fastest path that agrees with the plain one on a short prompt."""

        def order(group: PreparedGroup) -> tuple[bool, int]:
            return not exercises_block_mask(group), group.shared_length

        group = min(self.planner.shortened(prepared), key=order)
        with in_float32(self.model) as is_float32:
            tolerance = FP32_NATS if is_float32 else BF16_NATS
            expected = plain_logprobs(self.model, group)

            def require_agreement(mode: ForwardMode) -> None:
                self._require_agreement(group, expected, tolerance, mode)

            try:
                require_covered(self.model, {})
                require_agreement(ROWS)
            except Unsupported as unsupported:
                warnings.warn(
                    f"log-probs are read one response at a time, which is slow: {unsupported}",
                    stacklevel=4,
                )
                return "plain"
            self.planner.choose_mode(require_agreement)
        return "shared" if self.planner.best_mode.share_prefix else "rows"

    def _require_agreement(
        self, group: PreparedGroup, expected: Tensor, tolerance: float, mode: ForwardMode
    ) -> None:
        _, logp_RT = self._read([group], mode)
        # Written so that NaN is a disagreement.
        if not float((logp_RT - expected).abs().max()) <= tolerance:
            raise Unsupported("batched log-probs disagree with those of one response at a time")


def batch_logprobs(model: nn.Module, batch: PromptBatch) -> Tensor:
    """Log-probs of a batch's usable responses at the rollouts' temperature, float64 [R, T]."""
    _, logp_DT = log_probs(forward_logits(model, batch)[0], batch)
    return usable_logprobs(logp_DT, batch).masked_fill(~batch.responses.mask_RT, 0.0)


def plain_logprobs(model: nn.Module, group: PreparedGroup) -> Tensor:
    """The same of one prompt, one unique response at a time."""
    unique = [unique_logprobs(model, group, n).double() for n in range(len(group.unique_ids))]
    return nn.utils.rnn.pad_sequence([unique[n] for n in group.unique_index], batch_first=True)


def read_logprobs(
    reader: LogprobReader, groups: Sequence[RolloutGroup], advance: Advance | None = None
) -> list[list[np.ndarray]]:
    """Log-probs float64 [T] of each usable response of each group, in the groups' order.

    T are all tokens here; those that are not the policy's (`loss_mask` 0) are NaN.
    """
    logprobs = [[np.full(len(r.ids), np.nan) for r in group.usable] for group in groups]
    for batch, logp_RT in reader.batches(groups, advance):
        rows = iter(logp_RT.cpu().numpy())
        for owner in batch.index_P.tolist():
            for response, values in zip(groups[owner].usable, logprobs[owner], strict=True):
                values[response.sampled] = next(rows)[: response.tokens]
    return logprobs


def read_current_rewards(
    reader: LogprobReader, groups: Sequence[RolloutGroup], advance: Advance | None = None
) -> np.ndarray:
    """Mean reward under the reader's model and effective share of responses, float64 [n, 2].

    See `bounds.current_rewards`.
    """
    rewards = np.zeros((len(groups), 2))
    for batch, logp_RT in reader.batches(groups, advance):
        values = current_rewards(logp_RT, batch.responses)
        rewards[batch.index_P.cpu().numpy()] = values.cpu().numpy()
    return rewards


def read_objectives(
    reader: LogprobReader,
    groups: Sequence[RolloutGroup],
    config: ObjectiveConfig,
    advance: Advance | None = None,
) -> np.ndarray:
    """J of each group under the reader's model, float64 [n] (docs/method.md).

    NaN for groups whose ratios or rewards are out of range (`bounds`).
    """
    objectives = np.zeros(len(groups))
    for batch, logp_RT in reader.batches(groups, advance):
        in_range_G = range_codes(logp_RT, batch.responses, config) == 0
        values = objective(logp_RT, batch.responses, config).where(in_range_G, math.nan)
        objectives[batch.index_P.cpu().numpy()] = values.cpu().numpy()
    return objectives
