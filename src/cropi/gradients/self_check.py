"""Is the fast path right for this model? A comparison with plain autograd, before every run.

A layer may be called in ways that hooks do not see, a model may ignore block masks: rather than
trusting a list of architectures, one short prompt's gradient is computed both ways.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients.autograd import prompt_gradient
from cropi.gradients.batching import PreparedGroup
from cropi.gradients.contributions import matrix_shape
from cropi.gradients.forward import takes_block_masks
from cropi.gradients.layers import Unsupported, rule_for
from cropi.gradients.settings import ObjectiveConfig

STRICT, LOOSE = (1e-3, 1e-3), (0.4, 0.15)
"""Shares by which the fast gradient of (one parameter, all together) may differ from autograd's, in
fp32 and in bf16, where two right ways to compute differ by 0.24 and 0.06 on SmolLM2-135M."""

REFERENCES = 4
"""Prompts to try, at most, in search of one whose gradient is not zero."""


MOST_IN_FLOAT32 = 4_000_000_000
"""Parameters above which a half-precision model is not widened for the comparison."""


def telling(group: PreparedGroup) -> bool:
    """Whether a wrong block mask would show in a prompt's gradient."""
    return sum(len(ids) >= 2 for ids in group.distinct) >= 2


def reference(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    prepared: Sequence[PreparedGroup],
    objective: ObjectiveConfig,
) -> tuple[PreparedGroup, dict[str, Tensor]]:
    """A short prompt that can show a difference, with its gradient by plain autograd.

    Two responses of two tokens are needed for a block mask to matter, and a gradient that is not
    zero for anything to.
    """

    def order(group: PreparedGroup) -> tuple[bool, int, int]:
        return not telling(group), group.shared_length, group.index

    for group in sorted(prepared, key=order)[:REFERENCES]:
        expected = prompt_gradient(model, parameters, group, objective)
        check_finite(expected)
        if any(bool(gradient.any()) for gradient in expected.values()):
            break
    return group, expected


@dataclass
class Comparison:
    """A consumer that holds the fast gradients of one prompt to the expected ones."""

    expected: dict[str, Tensor]
    found: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, index_P: Tensor) -> None:
        """One prompt comes, once."""

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        """Keep some rows of one parameter."""
        if name not in self.found:
            self.found[name] = gradient_PRI.new_zeros(matrix_shape(self.expected[name].shape))
        self.found[name][rows] = gradient_PRI[0]

    def finish(self) -> None:
        """Nothing is left to do."""

    def _difference(self, name: str) -> float:
        """Norm of the difference; what never came counts as zero."""
        expected = self.expected[name].float()
        if name not in self.found:
            return float(expected.norm())
        return float((self.found[name].view_as(expected) - expected).norm())

    def conclude(self, one: float, whole: float) -> None:
        """Raise Unsupported where gradients differ by more than a share of their norms.

        `one` is the share allowed for a single parameter, `whole` for all together. Gradients
        that are tiny beside the whole are held to the whole's rounding instead.
        """
        norms = {name: float(g.float().norm()) for name, g in self.expected.items()}
        off = {name: self._difference(name) for name in norms}
        total = math.hypot(*norms.values())
        for name, norm in norms.items():
            # Written so that NaN is a disagreement.
            if not off[name] <= one * norm + 1e-2 * whole * total:
                raise Unsupported(f"the fast gradient of {name} disagrees with autograd")
        if not math.hypot(*off.values()) <= whole * total:
            raise Unsupported("the fast gradient disagrees with autograd")


@contextmanager
def in_float32(model: nn.Module) -> Iterator[tuple[float, float]]:
    """Compute in fp32 for a while, and yield how closely paths must then agree.

    The rounding of bf16 would hide a wrong gradient, or condemn a right one. The way there and
    back changes no bit. Quantised or very large weights, and attention that knows no fp32, stay.
    """
    half = (torch.bfloat16, torch.float16)
    coarse = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in half]
    quantised = any(p.dtype.itemsize < 4 and p.dtype not in half for p in model.parameters())
    too_large = sum(t.numel() for t in coarse) > MOST_IN_FLOAT32
    if coarse and (quantised or too_large or not takes_block_masks(model)):
        yield LOOSE
        return
    dtypes = [t.dtype for t in coarse]
    try:
        for tensor in coarse:
            tensor.data = tensor.data.float()
        yield STRICT
    finally:
        for tensor, dtype in zip(coarse, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def check_finite(gradients: dict[str, Tensor]) -> None:
    """Raise InputError where the model itself gives NaN or infinite gradients."""
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise InputError(
                f"the gradient of {name} is not finite (NaN or infinity); check the checkpoint's "
                "weights and the rollouts' log-probs, or compute in float32"
            )


def require_covered(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Raise Unsupported where the fast path could not even be tried."""
    if missing := uncovered(model, parameters):
        raise Unsupported(f"no rule for {', '.join(missing[:3])}")
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise Unsupported(f"{type(base).__name__} takes no position_ids")


def uncovered(model: nn.Module, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Names of trainable parameters that belong to a layer without a rule."""
    wanted = {id(p): name for name, p in parameters.items()}
    missing = []
    for module in model.modules():
        if rule_for(module) is None:
            own = module.parameters(recurse=False)
            missing += [
                f"{wanted[id(p)]} ({type(module).__name__})" for p in own if id(p) in wanted
            ]
    return missing
