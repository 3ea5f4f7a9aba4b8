"""A response's log-probs by the slow and obvious way: one forward pass, then sorting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from cropi.rollouts.engines.engine import Completion
from cropi.schema import Sampling


def sampled_logprobs(
    model: Any, prompt_ids: Sequence[int], completion: Completion, sampling: Sampling
) -> np.ndarray:
    """Log-probs [T] of the distribution that was sampled: temperature, then top-k, then top-p."""
    ids = torch.tensor([[*map(int, prompt_ids), *completion.ids.tolist()]])
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].double()
    scaled_TV = logits_TV / (sampling.temperature or 1.0)
    if sampling.top_k:
        least_T1 = scaled_TV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_TV = scaled_TV.masked_fill(scaled_TV < least_T1, -torch.inf)
    if sampling.top_p < 1:
        probs_TV, order_TV = scaled_TV.softmax(-1).sort(descending=True)
        beyond_TV = probs_TV.cumsum(-1) - probs_TV >= sampling.top_p
        scaled_TV[torch.zeros_like(beyond_TV).scatter(1, order_TV, beyond_TV)] = -torch.inf
    chosen = torch.from_numpy(completion.ids.astype(np.int64))[:, None]
    return scaled_TV.log_softmax(-1).gather(1, chosen)[:, 0].numpy()


def differences(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampled: Iterable[Sequence[Completion]],
    sampling: Sampling,
) -> np.ndarray:
    """How far the recorded log-probs are from those, over all tokens, in nats."""
    return np.concatenate(
        [
            np.abs(c.logprobs - sampled_logprobs(model, ids, c, sampling))
            for ids, group in zip(prompts, sampled, strict=True)
            for c in group
        ]
    )
