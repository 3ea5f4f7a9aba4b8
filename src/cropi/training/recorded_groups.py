"""The rollouts that training made: the groups it sampled, as `RolloutGroup`s.

Token ids and verdicts pass through the reward function. Log-probs of responses that our own engine
sampled come from the engine. TRL's transformers generation returns none, so for those we keep what
its loss computes anyway: the log-probs of the sampled tokens in the forward pass of the same step,
before the update, so under the weights that sampled them, at the sampling temperature. They do not
include top-p and top-k, are computed in training mode and, on a GPU, in bf16: `recomputed`.
Recording computes nothing extra, and no random state is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.schema import PolicyIdentity, Response, RolloutGroup, Sampling
from cropi.training.process_group import ProcessGroup
from cropi.training.rewards import SampledGroup
from cropi.verifiers.verdict import Verdict

Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a response."""


class LossLogprobs:
    """Log-probs of a step's responses, read from the forward pass of a TRL trainer's loss.

    Every process of the trainer reads those of its own responses.
    """

    def __init__(self, trainer: Any, group: ProcessGroup | None = None) -> None:
        self._group = group
        self._by_ids: dict[Key, NDArray[np.float32]] = {}
        compute: Callable[..., tuple[Tensor, ...]] = trainer._get_per_token_logps_and_entropies

        def compute_and_read(
            model: Any,
            input_ids: Tensor,
            attention_mask: Tensor,
            width: int,
            *rest: Any,
            **more: Any,
        ) -> tuple[Tensor, ...]:
            result = compute(model, input_ids, attention_mask, width, *rest, **more)
            if torch.is_grad_enabled():  # the loss; a reference policy's are computed without
                self._read(input_ids, attention_mask, width, result[0])
            return result

        trainer._get_per_token_logps_and_entropies = compute_and_read

    def take(self) -> dict[Key, NDArray[np.float32]]:
        """Return the log-probs that any process read since the last call, by token ids."""
        taken, self._by_ids = self._by_ids, {}
        if self._group is None:
            return taken
        return {
            key: value
            for part in self._group.together(lambda: taken)
            for key, value in part.items()
        }

    def _read(self, input_ids: Tensor, attention_mask: Tensor, width: int, logps: Tensor) -> None:
        """Take rows of a batch: prompts padded left, responses of up to `width` padded right."""
        ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
        values = logps.detach().float().cpu().numpy()
        for row in range(len(ids)):
            of_prompt, of_response = mask[row, :-width], mask[row, -width:]
            prompt, response = ids[row, :-width][of_prompt], ids[row, -width:][of_response]
            self._by_ids[tuple(prompt.tolist()), tuple(response.tolist())] = values[row][
                of_response
            ]


@dataclass(frozen=True, slots=True)
class GroupRecorder:
    """Makes rollouts of a stage's sampled groups; `encoded` are the prompts' token ids."""

    encoded: Mapping[str, Sequence[int]]
    sampling: Sampling
    policy: PolicyIdentity
    eos_ids: Sequence[int]
    seed: int
    losses: LossLogprobs

    def rollouts(self, groups: Iterable[SampledGroup], step: int) -> list[RolloutGroup]:
        """Return the groups that were sampled when `step` steps had been made.

        A group of which a response has no log-probs is left out: that is so where the loss does
        not see every token (`mask_truncated_completions`, `use_liger_kernel`).
        """
        from_loss = self.losses.take()
        made = (self._group(group, step, from_loss) for group in groups)
        return [group for group in made if group is not None]

    def _group(
        self, group: SampledGroup, step: int, from_loss: Mapping[Key, NDArray[np.float32]]
    ) -> RolloutGroup | None:
        prompt = self.encoded[group.prompt_id]
        logprobs: Sequence[NDArray[np.float32] | None] = group.logprobs or [
            from_loss.get((tuple(prompt), tuple(ids))) for ids in group.completions
        ]
        rows = zip(group.completions, group.texts, group.verdicts, logprobs, strict=True)
        responses = [
            self._response(ids, text, verdict, values)
            for ids, text, verdict, values in rows
            if values is not None
        ]
        if len(responses) < len(group.completions):
            return None
        return RolloutGroup(
            prompt_id=group.prompt_id,
            prompt_ids=np.array(prompt, dtype=np.int32),
            responses=responses,
            sampling=self.sampling,
            policy=PolicyIdentity(self.policy.name, self.policy.revision, step),
            seed=self.seed,
            logprob_mode="recomputed" if group.logprobs is None else "processed",
        )

    def _response(
        self, ids: Sequence[int], text: str, verdict: Verdict, logprobs: NDArray[np.float32]
    ) -> Response:
        return Response(
            ids=np.array(ids, dtype=np.int32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            text=text,
            finish_reason="stop" if ids and ids[-1] in self.eos_ids else "length",
            reward=float(verdict.reward) if verdict.status == "ok" else float("nan"),
            reward_status=verdict.status,
        )
