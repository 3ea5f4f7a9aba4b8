"""Plain autograd, one response at a time, and the check that the fast path agrees with it.

Plain autograd makes no assumption about the model: it is what the fast path is compared with before
every run, and what a model takes that the fast path does not cover. The check computes one short
prompt's gradient both ways instead of trusting a list of architectures, because a layer may be
called in ways that hooks do not see, and a model may ignore block masks.

Shape legend: D unique responses, R usable responses, T policy tokens of a response.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients import Unsupported
from cropi.gradients.bounds import GroupWeights, group_weights
from cropi.gradients.collation import PreparedGroup, response_tensors
from cropi.gradients.contributions import matrix_shape
from cropi.gradients.hooks import parameter_owners
from cropi.gradients.layers import rule_for
from cropi.gradients.objective import sum_over_equals
from cropi.gradients.ranks import (
    ALONE,
    Ranks,
    is_divided,
    is_sharded,
    reshard,
    sharded_like,
    square_sum,
    without_gradients,
)
from cropi.gradients.settings import ObjectiveConfig


@dataclass(frozen=True)
class Tolerance:
    """Relative differences allowed between the fast gradient and autograd's.

    `parameter` applies to each parameter alone, `total` to all together.
    """

    parameter: float
    total: float


FP32_TOLERANCE = Tolerance(1e-3, 1e-3)

BF16_TOLERANCE = Tolerance(0.4, 0.15)
"""Two correct bf16 computations differ by 0.24 and 0.06 on SmolLM2-135M."""

REFERENCE_TRIALS = 4
"""Prompts to try, at most, in search of one whose gradient is not zero."""


def response_logprobs(
    model: nn.Module, prompt_ids: Tensor, response_ids: Tensor, temperature: float
) -> Tensor:
    """Log-probs of every token at the rollouts' temperature, float32 or wider, with graph."""
    ids = torch.cat([prompt_ids, response_ids]).unsqueeze(0)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt_ids) - 1 :]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = torch.log_softmax(wide / temperature, dim=-1)
    return logps.gather(1, response_ids.unsqueeze(1)).squeeze(1)


def unique_logprobs(model: nn.Module, group: PreparedGroup, which: int) -> Tensor:
    """Log-probs [T] of the policy's tokens of one unique response, with graph."""
    device = next(model.parameters()).device
    prompt, ids = (
        torch.as_tensor(values, dtype=torch.int64, device=device)
        for values in (group.prompt_ids, group.unique_ids[which])
    )
    logps = response_logprobs(model, prompt, ids, group.temperature)
    return logps[torch.from_numpy(group.unique_masks[which]).to(device)]


def prompt_gradient(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    group: PreparedGroup,
    config: ObjectiveConfig,
    weights: GroupWeights | None = None,
) -> dict[str, Tensor]:
    """Gradient of J of one prompt by name, in the parameters' shapes and at least fp32.

    Each unique response has its own forward and backward, weighted by dJ/dlogp: left to autograd,
    the sum over the responses of a bf16 model would be taken in bf16, and the graphs of all of
    them would be held at once. `weights` are those of `prompt_weights`, if already computed.
    """
    weights_RT = (weights or prompt_weights(model, group, config)).weights_RT
    unique_R = torch.tensor(group.unique_index, device=weights_RT.device)
    weights_DT = sum_over_equals(weights_RT, unique_R, len(group.unique_ids))
    total = {name: torch.zeros_like(p, dtype=_wide_dtype(p)) for name, p in parameters.items()}
    for n, weights_T in enumerate(weights_DT):
        for name, gradient in _response_gradient(model, parameters, group, n, weights_T).items():
            total[name] += gradient
    return total


def response_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    group: PreparedGroup,
    weights_DT: Tensor,
) -> dict[str, Tensor]:
    """The weighted sums of each unique response's token gradients, by name [D, *shape]."""
    unique = len(group.unique_ids)
    gradients = {
        name: torch.stack([torch.zeros_like(p, dtype=_wide_dtype(p))] * unique)
        for name, p in parameters.items()
    }
    for n, weights_T in enumerate(weights_DT):
        for name, gradient in _response_gradient(model, parameters, group, n, weights_T).items():
            gradients[name].select(0, n).copy_(gradient)
    return gradients


def _response_gradient(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    group: PreparedGroup,
    which: int,
    weights_T: Tensor,
) -> dict[str, Tensor]:
    """The same of one unique response, without the parameters that it does not use."""
    if is_sharded(model):
        return _sharded_gradient(model, parameters, group, which, weights_T)
    with torch.enable_grad():
        logp = unique_logprobs(model, group, which)
        gradients = torch.autograd.grad(
            logp,
            list(parameters.values()),
            weights_T[: len(logp)].to(logp.dtype),
            allow_unused=True,
        )
    pairs = zip(parameters, gradients, strict=True)
    return {name: gradient for name, gradient in pairs if gradient is not None}


def _sharded_gradient(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    group: PreparedGroup,
    which: int,
    weights_T: Tensor,
) -> dict[str, Tensor]:
    """What backward leaves in `grad`: of weights that FSDP2 holds, each rank gets its part.

    It is the mean over the ranks, and all of them compute the same response here. A tied weight may
    be held twice; its gradient is the sum. Of a tensor parallel model it is the part's gradient.
    """
    gradients: dict[str, Tensor] = {}
    with without_gradients(model), torch.enable_grad():
        logp = unique_logprobs(model, group, which)
        logp.backward(weights_T[: len(logp)].to(logp.dtype))  # type: ignore[no-untyped-call]
        reshard(model)
        seen = set()
        for module, attributes in parameter_owners(model, parameters).items():
            for attribute, name in attributes.items():
                parameter = getattr(module, attribute)
                gradient = parameter.grad
                if gradient is not None and id(gradient) not in seen:
                    seen.add(id(gradient))
                    gradient = sharded_like(parameter, gradient)
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return gradients


def prompt_weights(model: nn.Module, group: PreparedGroup, config: ObjectiveConfig) -> GroupWeights:
    """dJ/dlogp of one prompt's usable responses, and whether it is in range."""
    with torch.no_grad():
        logps = [unique_logprobs(model, group, n) for n in range(len(group.unique_ids))]
    device = logps[0].device
    logp_DT = nn.utils.rnn.pad_sequence(logps, batch_first=True).double()
    unique_R = torch.tensor(group.unique_index, device=device)
    return group_weights(logp_DT[unique_R], response_tensors([group], device), config)


def _wide_dtype(values: Tensor) -> torch.dtype:
    """At least fp32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def exercises_block_mask(group: PreparedGroup) -> bool:
    """Whether a wrong block mask would change a prompt's gradient.

    That takes two responses with a policy token after their first, which the other's tokens would
    reach.
    """
    return sum(bool(mask[1:].any()) for mask in group.unique_masks) >= 2


def reference_gradient(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    prepared: Sequence[PreparedGroup],
    objective: ObjectiveConfig,
) -> tuple[PreparedGroup, dict[str, Tensor]]:
    """A short prompt that can show a difference, with its gradient by plain autograd.

    It should exercise the block mask, and its gradient should not be zero. Prompts that are out of
    range are not tried; if all are, the gradient is zero.
    """

    def order(group: PreparedGroup) -> tuple[bool, int, int]:
        return not exercises_block_mask(group), group.shared_length, group.index

    ordered = sorted(prepared, key=order)
    weighted = ((group, prompt_weights(model, group, objective)) for group in ordered)
    in_range = ((group, weights) for group, weights in weighted if not weights.code_G.any())
    group, expected = ordered[0], {n: torch.zeros_like(p) for n, p in parameters.items()}
    for group, weights in itertools.islice(in_range, REFERENCE_TRIALS):
        expected = prompt_gradient(model, parameters, group, objective, weights)
        require_finite(group.prompt_id, expected)
        if any(square_sum(gradient) > 0 for gradient in expected.values()):
            break
    return group, expected


@dataclass
class GradientComparison:
    """A consumer that compares the fast gradients of one prompt with the expected ones.

    Rows are compared as they come, so that of expected gradients that are sharded over processes
    one parameter is whole at a time. Rows that never come count as zero. Ranks that share prompts
    compare their parts each, and agree on what they found.
    """

    expected: dict[str, Tensor]
    ranks: Ranks = ALONE
    _name: str = field(default="", init=False)
    _rows_OI: Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _squares: dict[str, float] = field(default_factory=dict, init=False)
    _missing: dict[str, Tensor] = field(default_factory=dict, init=False)

    def begin(self, index_P: Tensor) -> None:
        """One prompt comes, once."""

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Compare some rows of one parameter."""
        if name != self._name:
            expected = self.ranks.as_used(self.expected[name])
            self._name, self._rows_OI = name, expected.reshape(matrix_shape(expected.shape))
            norms_O = torch.linalg.vector_norm(self._rows_OI, dim=1, dtype=torch.float64)
            self._missing[name] = norms_O.square()
        difference_RI = gradient_PRI[0].double() - self._rows_OI[rows]
        square = float(difference_RI.square().sum())
        self._squares[name] = self._squares.get(name, 0.0) + square
        self._missing[name][rows] = 0.0

    def finish(self) -> None:
        """Nothing to do."""

    def _square(self, name: str) -> float:
        """Squared norm of the difference, of this rank's part."""
        if name not in self._missing:
            return square_sum(self.ranks.as_used(self.expected[name]))
        return self._squares[name] + float(self._missing[name].sum())

    def _differences(self) -> dict[str, float]:
        """Norms of the differences, the same on all ranks that share prompts.

        Parts add up; of what all of them hold whole it is the mean.
        """
        squares = {name: self._square(name) for name in self.expected}
        if self.ranks.share_prompts:
            held = [is_divided(gradient) for gradient in self.expected.values()]
            share_N = torch.tensor([1 if each else 1 / self.ranks.size for each in held]).double()
            squares_N = torch.tensor(list(squares.values()), dtype=torch.float64) * share_N
            squares = dict(zip(squares, self.ranks.add_up(squares_N).tolist(), strict=True))
        return {name: math.sqrt(square) for name, square in squares.items()}

    def raise_if_different(self, tolerance: Tolerance) -> None:
        """Raise Unsupported where gradients differ by more than the tolerance.

        Parameters whose gradients are tiny compared with the total may differ by its
        rounding.
        """
        norms = {name: math.sqrt(square_sum(g)) for name, g in self.expected.items()}
        differences = self._differences()
        total = math.hypot(*norms.values())
        for name, norm in norms.items():
            # Written so that NaN is a disagreement.
            allowed = tolerance.parameter * norm + 1e-2 * tolerance.total * total
            if not differences[name] <= allowed:
                raise Unsupported(f"the fast gradient of {name} disagrees with autograd")
        if not math.hypot(*differences.values()) <= tolerance.total * total:
            raise Unsupported("the fast gradient disagrees with autograd")


def require_finite(prompt_id: str, gradients: dict[str, Tensor]) -> None:
    """Raise InputError where the model itself gives NaN or infinite gradients."""
    for name, gradient in gradients.items():
        if not math.isfinite(square_sum(gradient)):
            raise InputError(
                f"the gradient of {name} for prompt {prompt_id} is not finite (NaN or infinity); "
                "check the checkpoint's weights and the rollouts' log-probs, or compute in float32"
            )


def require_covered(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise Unsupported where the fast path cannot even be tried."""
    if missing := _uncovered(model, parameters):
        raise Unsupported(f"no rule for {', '.join(missing[:3])}")
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise Unsupported(f"{type(base).__name__} takes no position_ids")


def _uncovered(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of trainable parameters that belong to a layer without a rule."""
    return [
        f"{name} ({type(module).__name__})"
        for module, held in parameter_owners(model, parameters).items()
        if rule_for(module) is None
        for name in held.values()
    ]
