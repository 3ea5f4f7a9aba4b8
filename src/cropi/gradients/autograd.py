"""The slow, obvious way: one prompt at a time, one response at a time, plain autograd.

It makes no assumption about the model, so it is what the fast path is checked against on every
run's first prompt, and what a model takes that the fast path does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.gradients.batching import PreparedGroup
from cropi.gradients.collation import collate
from cropi.gradients.objective import token_weights


def response_logprobs(
    model: nn.Module, prompt_ids: Tensor, response_ids: Tensor, temperature: float
) -> Tensor:
    """Log-probs [T] of a response at the rollouts' temperature, float32 or wider, with graph."""
    ids = torch.cat([prompt_ids, response_ids]).unsqueeze(0)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt_ids) - 1 :]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = torch.log_softmax(wide / temperature, dim=-1)
    return logps.gather(1, response_ids.unsqueeze(1)).squeeze(1)


def prompt_gradient(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    group: PreparedGroup,
    config: ObjectiveConfig,
) -> dict[str, Tensor]:
    """Gradient of J of one prompt by name, in the parameters' shapes and at least fp32.

    Each response has a backward of its own, weighted by dJ/dlogp: left to autograd, the sum over
    the responses of a bf16 model would be taken in bf16.
    """
    device = next(iter(parameters.values())).device
    responses = collate([group], share_prefix=False, device=device).responses
    prompt = torch.as_tensor(group.prompt_ids, dtype=torch.int64, device=device)
    total = {name: torch.zeros_like(p, dtype=wide_dtype(p)) for name, p in parameters.items()}
    with torch.enable_grad():
        logps = []
        for response in group.responses:
            ids = torch.as_tensor(response.ids, dtype=torch.int64, device=device)
            logps.append(response_logprobs(model, prompt, ids, group.temperature))
        logp_RT = nn.utils.rnn.pad_sequence([logp.detach() for logp in logps], batch_first=True)
        weights_RT = token_weights(logp_RT, responses, config)
        for logp, weights in zip(logps, weights_RT, strict=True):
            own = weights[: len(logp)].to(logp.dtype)
            found = torch.autograd.grad(logp, list(parameters.values()), own, allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def wide_dtype(values: Tensor) -> torch.dtype:
    """At least fp32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
