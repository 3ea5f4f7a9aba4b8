"""The slow, obvious gradient: docs/method.md written down with plain loops in float64.

One prompt, one response, one token at a time, with autograd on `model.double()`. It shares no
code with `cropi.gradients`, reads only the data contracts, and is allowed to take its time.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cropi.schema import Response, RolloutGroup


@dataclass(frozen=True)
class Method:
    """The options of the objective, by the names of the config."""

    ratio: str = "token"
    clip: tuple[float, float] | None = None
    normalisation: str = "sequence"
    constant_length: int | None = None
    scale_by_std: bool = True
    self_normalised: bool = False


def oracle_gradient(
    model: nn.Module, group: RolloutGroup, method: Method | None = None
) -> dict[str, Tensor]:
    """Gradient of J of one prompt by parameter name, float64, zeros for unused parameters."""
    double = copy.deepcopy(model).double().eval()
    parameters = {n: p for n, p in double.named_parameters() if p.requires_grad}
    total = oracle_objective(double, group, method or Method())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }


def oracle_response_gradients(
    model: nn.Module, group: RolloutGroup, method: Method | None = None
) -> list[dict[str, Tensor]]:
    """What each usable response adds to the gradient of J, as `oracle_gradient`."""
    double = copy.deepcopy(model).double().eval()
    parameters = {n: p for n, p in double.named_parameters() if p.requires_grad}
    gradients = []
    for term in oracle_terms(double, group, method or Method()):
        values = torch.autograd.grad(
            term, list(parameters.values()), allow_unused=True, retain_graph=True
        )
        pairs = zip(parameters.items(), values, strict=True)
        gradients.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs})
    return gradients


def oracle_objective(model: nn.Module, group: RolloutGroup, method: Method) -> Tensor:
    """J of one prompt, with graph."""
    terms = oracle_terms(model, group, method)
    return sum(terms[1:], start=terms[0])


def oracle_terms(model: nn.Module, group: RolloutGroup, method: Method) -> list[Tensor]:
    """The terms of J, one for each usable response, with graph."""
    usable = [r for r in group.responses if r.reward_status == "ok" and policy_tokens(r)]
    logps = [token_logprobs(model, group, response) for response in usable]
    advantages = oracle_advantages(usable, logps, method)
    sums = []
    for response, logp, advantage in zip(usable, logps, advantages, strict=True):
        terms = token_terms(response, logp, advantage, method)
        sums.append(sum(terms[1:], start=terms[0]))
    lengths = [len(policy_tokens(response)) for response in usable]
    if method.normalisation == "token":
        return [total / sum(lengths) for total in sums]
    if method.normalisation == "constant":
        lengths = [method.constant_length] * len(usable)
    pairs = zip(sums, lengths, strict=True)
    return [total / length / len(usable) for total, length in pairs]


def policy_tokens(response: Response) -> list[int]:
    """Places of the tokens that are the policy's: all of them without a loss mask."""
    mask = response.loss_mask
    return [t for t in range(len(response.ids)) if mask is None or int(mask[t]) != 0]


def token_logprobs(model: nn.Module, group: RolloutGroup, response: Response) -> list[Tensor]:
    """Log pi(y_t | s, y_<t) of each policy token at the rollouts' temperature, as scalars."""
    prompt, ids = group.prompt_ids.tolist(), response.ids.tolist()
    sequence = torch.tensor([prompt + ids])
    logits = model(input_ids=sequence, use_cache=False).logits[0]
    logps = []
    for t in policy_tokens(response):
        scaled = logits[len(prompt) + t - 1] / group.sampling.temperature
        logps.append(scaled[ids[t]] - torch.logsumexp(scaled, 0))
    return logps


def behaviour_logprobs(response: Response) -> list[float]:
    """The sampler's log-probs of the policy's tokens."""
    return [float(response.logprobs[t]) for t in policy_tokens(response)]


def oracle_advantages(
    usable: list[Response], logps: list[list[Tensor]], method: Method
) -> list[float]:
    """(r - mean) / (sample std + 1e-4), numbers without a graph."""
    rewards = [response.reward for response in usable]
    count = len(rewards)
    weights = [1.0] * count
    if method.self_normalised:
        weights = [
            float(sequence_ratio(response, logp).detach())
            for response, logp in zip(usable, logps, strict=True)
        ]
    mean = sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)
    if not method.scale_by_std:
        return [r - mean for r in rewards]
    squares = sum(w * (r - mean) ** 2 for w, r in zip(weights, rewards, strict=True))
    std = math.sqrt(squares / sum(weights) * count / (count - 1))
    return [(r - mean) / (std + 1e-4) for r in rewards]


def sequence_ratio(response: Response, logp: list[Tensor]) -> Tensor:
    """GSPO's ratio: exp of the mean log-ratio over the response."""
    total = torch.zeros((), dtype=torch.float64)
    for current, behaviour in zip(logp, behaviour_logprobs(response), strict=True):
        total = total + (current - behaviour)
    return torch.exp(total / len(logp))


def token_terms(
    response: Response, logp: list[Tensor], advantage: float, method: Method
) -> list[Tensor]:
    """rho_t A of each policy token, clipped if asked for; log pi A without ratio."""
    whole = sequence_ratio(response, logp)
    terms = []
    for current, behaviour in zip(logp, behaviour_logprobs(response), strict=True):
        if method.ratio == "none":
            terms.append(current * advantage)
            continue
        ratio = whole if method.ratio == "sequence" else torch.exp(current - behaviour)
        terms.append(clipped(ratio, advantage, method))
    return terms


def clipped(ratio: Tensor, advantage: float, method: Method) -> Tensor:
    """PPO's min(rho A, clip(rho) A), written as the two cases in which the clip acts."""
    if method.clip is not None:
        low, high = 1 - method.clip[0], 1 + method.clip[1]
        if advantage > 0 and ratio.item() > high:
            return 0 * ratio + high * advantage
        if advantage < 0 and ratio.item() < low:
            return 0 * ratio + low * advantage
    return ratio * advantage


def flatten(gradient: dict[str, Tensor]) -> Tensor:
    """The gradient as one float64 vector, parameters in the model's order."""
    return torch.cat([g.double().flatten() for g in gradient.values()])
