"""Per-prompt policy gradients, many prompts a backward pass, layer by layer.

One forward pass, one backward pass through the activations, and at each layer, as backward
reaches it, a batched matmul that gives every prompt's own weight gradient. Consumers (dots with
target directions, norms, sketches) take it at once and it is freed: a full gradient never exists.
Autograd itself computes no weight gradient at all.

Where this departs from the textbook: logits are computed only at positions that predict a
response token, and their gradient is written down (weight x (onehot - softmax) / temperature)
instead of being derived.

A model with layers that no rule covers, or whose fast gradients disagree with plain autograd on
a short prompt, takes the slow path (`autograd.py`), with a warning that says why.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients.autograd import prompt_gradient
from cropi.gradients.batching import PreparedGroup, prepare
from cropi.gradients.collation import Batch
from cropi.gradients.forward import forward_logits, logits_gradient, require_fitting
from cropi.gradients.layers import Unsupported
from cropi.gradients.modes import checkpointed, evaluation_mode, frozen
from cropi.gradients.routing import PLAIN, BatchPlanner, ForwardMode
from cropi.gradients.self_check import Comparison, in_float32, reference, require_covered, telling
from cropi.gradients.settings import ObjectiveConfig
from cropi.gradients.tap import GradientConsumer, LayerTap, hand_over
from cropi.schema import RolloutGroup


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did: prompts, tokens through the model, and which path it took."""

    prompts: int
    tokens: int
    path: str


def trainable(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """The parameters whose gradient is the prompt's, by name, tied weights once.

    `patterns` keep the names that match one of them, as in a shell (`model.layers.*.mlp.*`).
    Raises InputError if nothing is trainable, or a pattern matches nothing.
    """
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise InputError(
            "the model has no trainable parameter (0 of its tensors require gradients); load it "
            "with trainable weights or adapters"
        )
    if patterns is None:
        return found
    for pattern in patterns:
        if not fnmatch.filter(found, pattern):
            raise InputError(
                f"influence.parameters has {pattern!r}, which matches none of the "
                f"{len(found)} trainable parameters, such as {', '.join(list(found)[:3])}"
            )
    return {n: p for n, p in found.items() if any(fnmatch.fnmatchcase(n, g) for g in patterns)}


@dataclass
class GradientExtractor:
    """Streams per-prompt gradients of `model` into consumers.

    `share_prefix` computes a prompt once for all its responses where the model allows it;
    `checkpointing` recomputes activations in backward; `patterns` narrow the parameters.
    """

    model: nn.Module
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch_tokens: int | None = None
    share_prefix: bool = True
    checkpointing: bool = False
    patterns: Sequence[str] | None = None
    path: str = field(default="", init=False)
    _proved: bool = field(default=False, init=False)
    router: BatchPlanner = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.parameters = trainable(self.model, self.patterns)
        self.router = BatchPlanner(self.model, self.batch_tokens, self.share_prefix)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.parameters.values())).device

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter that has gradients, by name, in the model's order."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    def run(
        self,
        groups: Sequence[RolloutGroup],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None = None,
    ) -> ExtractionReport:
        """Stream the gradients of informative `groups`; consumers index them by list position."""
        assert all(g.informative for g in groups), "an uninformative group has no gradient"
        prepared = [prepare(n, g) for n, g in enumerate(groups)]
        if not prepared:
            return ExtractionReport(0, 0, self.path)
        require_fitting(self.model, groups)
        with evaluation_mode(self.model), checkpointed(self.model, self.checkpointing):
            if not self._proved:
                with in_float32(self.model) as tolerance:
                    self.path = self._choose_path(prepared, tolerance)
            if self.path == "autograd":
                tokens = self._run_slow(prepared, consumers, progress)
            else:
                tokens = self._run_fast(self.router.batches(prepared), consumers, progress)
        return ExtractionReport(len(prepared), tokens, self.path)

    def _run_slow(
        self,
        prepared: Sequence[PreparedGroup],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None,
    ) -> int:
        for group in prepared:
            index_P = torch.tensor([group.index], device=self.device)
            found = prompt_gradient(self.model, self.parameters, group, self.objective)
            for consumer in consumers:
                consumer.begin(index_P)
                for name, gradient in found.items():
                    hand_over(consumer, name, gradient)
                consumer.finish()
            if progress:
                progress(1)
        return sum(sum(g.row_lengths[w] for w in g.which) for g in prepared)

    def _run_fast(
        self,
        batches: Iterable[tuple[list[PreparedGroup], ForwardMode]],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None,
    ) -> int:
        tokens = 0
        with frozen(self.model), LayerTap(self.model, self.parameters, consumers) as tap:
            for members, route in batches:
                with self.router.through(members, route) as batch:
                    self._one_batch(batch, tap)
                tokens += batch.tokens
                if progress:
                    progress(batch.prompts)
        return tokens

    def _one_batch(self, batch: Batch, tap: LayerTap) -> None:
        """Forward, write the logits' gradient, backward; the tap does the rest."""
        with torch.enable_grad(), tap.watching(batch):
            logits_1SV = forward_logits(self.model, batch)
            tap.forward_is_done()
            # Backward needs the logits no more, so their gradient takes their place. A model for
            # which that is not so fails the comparison with autograd.
            gradient_SV = logits_gradient(logits_1SV.data[0], batch, self.objective)
            torch.autograd.backward(logits_1SV, gradient_SV.unsqueeze(0))

    def _choose_path(
        self, prepared: Sequence[PreparedGroup], tolerance: tuple[float, float]
    ) -> str:
        """The fastest path whose gradients agree with plain autograd on a short prompt."""
        group, expected = reference(self.model, self.parameters, prepared, self.objective)
        # Prompts too plain to prove anything do not vouch for those of the next run.
        self._proved = telling(group) and any(bool(e.any()) for e in expected.values())

        def require_agreement(route: ForwardMode) -> None:
            self._require_agreement(group, expected, tolerance, route)

        try:
            require_covered(self.model, self.parameters)
            # Prompts that cannot go another way go this one, so it must agree whatever else does.
            require_agreement(PLAIN)
        except Unsupported as unsupported:
            warnings.warn(
                "per-prompt gradients fall back to one prompt at a time, which is slow: "
                f"{unsupported}",
                stacklevel=3,
            )
            return "autograd"
        self.router.choose(require_agreement)
        return "shared" if self.router.best.share else "rows"

    def _require_agreement(
        self,
        group: PreparedGroup,
        expected: dict[str, Tensor],
        tolerance: tuple[float, float],
        route: ForwardMode,
    ) -> None:
        """Raise Unsupported unless the fast gradients of `group` equal the expected ones."""
        comparison = Comparison(expected)
        try:
            self._run_fast([([replace(group, index=0)], route)], [comparison], None)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Autograd refuses taps on outputs that the model goes on to change in place.
            raise Unsupported(str(error).splitlines()[0]) from error
        comparison.conclude(*tolerance)
