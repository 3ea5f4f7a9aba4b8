"""The slow, obvious way: one prompt at a time, one response at a time, plain autograd.

It makes no assumption about the model, so it is what the fast path is checked against on every
run's first prompt, and what a model takes that the fast path does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cropi.gradients.batching import PreparedGroup
from cropi.gradients.collation import response_tensors
from cropi.gradients.objective import sum_over_equals, token_weights
from cropi.gradients.settings import ObjectiveConfig


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

    Each distinct response has a forward and a backward of its own, weighted by dJ/dlogp: left to
    autograd, the sum over the responses of a bf16 model would be taken in bf16, and the graphs of
    all of them would be held at once.
    """
    device = next(iter(parameters.values())).device
    prompt = torch.as_tensor(group.prompt_ids, dtype=torch.int64, device=device)
    distinct = [torch.as_tensor(ids, dtype=torch.int64, device=device) for ids in group.distinct]
    with torch.no_grad():
        logps = [response_logprobs(model, prompt, ids, group.temperature) for ids in distinct]
    weights_DT = distinct_weights(logps, group, config)
    total = {name: torch.zeros_like(p, dtype=wide_dtype(p)) for name, p in parameters.items()}
    for ids, weights_T in zip(distinct, weights_DT, strict=True):
        with torch.enable_grad():
            logp = response_logprobs(model, prompt, ids, group.temperature)
            own = weights_T[: len(logp)].to(logp.dtype)
            found = torch.autograd.grad(logp, list(parameters.values()), own, allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def distinct_weights(
    logps: Sequence[Tensor], group: PreparedGroup, config: ObjectiveConfig
) -> Tensor:
    """dJ/dlogp float64 [D, T] of each distinct response, summed over its equals."""
    device = logps[0].device
    responses = response_tensors([group], device)
    which_R = torch.tensor(group.which, device=device)
    logp_DT = nn.utils.rnn.pad_sequence(list(logps), batch_first=True)
    weights_RT = token_weights(logp_DT[which_R], responses, config)
    return sum_over_equals(weights_RT, which_R, len(logps))


def wide_dtype(values: Tensor) -> torch.dtype:
    """At least fp32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
