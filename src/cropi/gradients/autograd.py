"""The slow, obvious way: one prompt at a time, one response at a time, plain autograd.

It makes no assumption about the model, so it is what the fast path is checked against on every
run's first prompt, and what a model takes that the fast path does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.gradients.batching import PreparedGroup, collate
from cropi.gradients.objective import objective


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
    """Gradient of J of one prompt by name, in the parameters' shapes and at least fp32."""
    device = next(iter(parameters.values())).device
    responses = collate([group], share_prefix=False, device=device).responses
    prompt = torch.as_tensor(group.prompt_ids, dtype=torch.int64, device=device)
    longest = responses.mask_RT.shape[1]
    logps = []
    with torch.enable_grad():
        for response in group.responses:
            ids = torch.as_tensor(response.ids, dtype=torch.int64, device=device)
            logp = response_logprobs(model, prompt, ids, group.temperature).to(torch.float64)
            logps.append(nn.functional.pad(logp, (0, longest - len(ids))))
        total = objective(torch.stack(logps), responses, config).sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter, dtype=torch.float32) if g is None else widen(g)
        for (name, parameter), g in zip(parameters.items(), found, strict=True)
    }


def widen(values: Tensor) -> Tensor:
    """At least fp32."""
    return values if values.dtype == torch.float64 else values.float()
