"""The floor: what any training step pays for the same tokens.

Plain forward and backward of ordinary rows, prompt and one response each, in micro-batches: the
hidden states are narrowed to the positions that predict a response token before the head sees
them, weight gradients accumulate in `.grad`, dropout is off, the objective is ours (the token
ratio times the advantage, mean over a response's tokens, then over the responses).

Shape legend: N rows, L positions a row (padded), S predicting positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cropi.schema import RolloutGroup

ADVANTAGE_EPSILON = 1e-4


@dataclass(frozen=True)
class Rows:
    """Prompt+response rows: `ids_NL` int64, padded on the right, a response's last token not fed.

    `row_S`, `position_S` say where each response token is predicted, `target_S` which it is;
    `behaviour_S` and `weight_S` fp32 enter the objective; `length_N` counts real positions.
    """

    ids_NL: Tensor
    length_N: Tensor
    row_S: Tensor
    position_S: Tensor
    target_S: Tensor
    behaviour_S: Tensor
    weight_S: Tensor

    @classmethod
    def of(
        cls, groups: Sequence[RolloutGroup], device: torch.device, with_weights: bool = True
    ) -> Rows:
        """The rows of all responses; without weights, rewards and log-probs may be missing."""
        ids: list[Tensor] = []
        columns = []
        for group in groups:
            weights = response_weights(group, len(groups)) if with_weights else None
            for k, response in enumerate(group.responses):
                start, size = len(group.prompt_ids) - 1, len(response.ids)
                columns.append(
                    (
                        np.full(size, len(ids)),
                        np.arange(start, start + size),
                        response.ids,
                        np.zeros(size) if weights is None else response.logprobs,
                        np.full(size, 0.0 if weights is None else weights[k]),
                    )
                )
                ids.append(torch.tensor(np.concatenate([group.prompt_ids, response.ids[:-1]])))
        row, position, target, behaviour, weight = map(np.concatenate, zip(*columns, strict=True))
        return cls(
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).long().to(device),
            torch.tensor([len(i) for i in ids], device=device),
            *(torch.tensor(c, dtype=torch.int64, device=device) for c in (row, position, target)),
            *(torch.tensor(c, dtype=torch.float32, device=device) for c in (behaviour, weight)),
        )

    def parts(self, size: int) -> Iterator[Rows]:
        """Micro-batches of `size` rows, padded to their own longest."""
        for start in range(0, len(self.ids_NL), size):
            rows = slice(start, start + size)
            longest = int(self.length_N[rows].max())
            in_part_S = (self.row_S >= start) & (self.row_S < start + size)
            yield Rows(
                self.ids_NL[rows, :longest],
                self.length_N[rows],
                self.row_S[in_part_S] - start,
                self.position_S[in_part_S],
                self.target_S[in_part_S],
                self.behaviour_S[in_part_S],
                self.weight_S[in_part_S],
            )


def response_weights(group: RolloutGroup, prompts: int) -> np.ndarray:
    """A_k / (|y_k| K prompts) of each response [K]: the weight of its tokens' ratios."""
    rewards = np.array([r.reward for r in group.responses])
    advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + ADVANTAGE_EPSILON)
    lengths = np.array([len(r.ids) for r in group.responses])
    return np.asarray(advantages / (lengths * len(rewards) * prompts))


def token_logprobs(model: Any, rows: Rows) -> Tensor:
    """Log-probs [S] of the response tokens, with graph; the head sees predicting positions only."""
    hidden_NLH = model.base_model(input_ids=rows.ids_NL, use_cache=False).last_hidden_state
    logits_SV = model.get_output_embeddings()(hidden_NLH[rows.row_S, rows.position_S])
    return -functional.cross_entropy(logits_SV.float(), rows.target_S, reduction="none")


@torch.no_grad()
def logprobs(model: Any, rows: Rows) -> Tensor:
    """Log-probs [S] of the response tokens."""
    return token_logprobs(model, rows)


@contextmanager
def attending(model: Any, attention: str | None) -> Iterator[None]:
    """Another of transformers' attention implementations for a while; None: as it is."""
    before = model.config._attn_implementation
    if attention is not None:
        model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Floor:
    """Forward and backward of some groups, gradients accumulated.

    `attention` is one of transformers' implementations: on CPUs the plain one beats the default.
    """

    def __init__(
        self,
        model: Any,
        groups: Sequence[RolloutGroup],
        micro_batch: int,
        attention: str | None = None,
    ) -> None:
        self.model = model
        self.attention = attention
        device = next(iter(model.parameters())).device
        self.parts = list(Rows.of(groups, device).parts(micro_batch))

    def run(self) -> None:
        """One pass over all micro-batches; the gradients are dropped before it."""
        self.model.zero_grad(set_to_none=True)
        with attending(self.model, self.attention):
            for rows in self.parts:
                ratio_S = (token_logprobs(self.model, rows) - rows.behaviour_S).exp()
                (ratio_S * rows.weight_S).sum().backward()  # type: ignore[no-untyped-call]

    @property
    def lengths(self) -> list[int]:
        """Real positions of each row."""
        return [int(n) for rows in self.parts for n in rows.length_N]

    @property
    def predicting(self) -> int:
        """Positions that predict a response token."""
        return sum(len(rows.target_S) for rows in self.parts)
