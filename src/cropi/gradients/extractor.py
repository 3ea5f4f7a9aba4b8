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

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.agreement import Comparison, in_float32, reference, require_covered
from cropi.gradients.autograd import prompt_gradient
from cropi.gradients.batching import Batch, Budget, PreparedGroup, collate, plan, prepare
from cropi.gradients.forward import (
    attention_window,
    forward_logits,
    logits_gradient,
    require_fitting,
    takes_block_masks,
    text_config,
)
from cropi.gradients.layers import Unsupported
from cropi.gradients.tap import GradientConsumer, LayerTap
from cropi.schema import RolloutGroup

LOGITS_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}
"""Most bytes of one fp32 copy of a batch's logits."""


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did: prompts, tokens through the model, and which path it took."""

    prompts: int
    tokens: int
    path: str


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters whose gradient is the prompt's, by name, tied weights once.

    Raises InputError if nothing is trainable.
    """
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise InputError(
            "the model has no trainable parameter (0 of its tensors require gradients); load it "
            "with trainable weights or adapters"
        )
    return found


@dataclass
class GradientExtractor:
    """Streams per-prompt gradients of `model` into consumers.

    `share_prefix` computes a prompt once for all its responses where the model allows it.
    """

    model: nn.Module
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch_tokens: int = 16384
    share_prefix: bool = True
    path: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.parameters = trainable(self.model)

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
        with evaluation_mode(self.model):
            if not self.path:
                with in_float32(self.model) as tolerance:
                    self.path = self._choose_path(prepared, tolerance)
            if self.path == "autograd":
                tokens = self._run_slow(prepared, consumers, progress)
            else:
                tokens = self._run_fast(self._batches(prepared), consumers, progress)
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
            for name, gradient in found.items():
                for consumer in consumers:
                    consumer.consume(name, index_P, gradient.float().unsqueeze(0))
            if progress:
                progress(1)
        return sum(sum(g.row_lengths[w] for w in g.which) for g in prepared)

    def _run_fast(
        self,
        batches: Iterable[tuple[list[PreparedGroup], bool]],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None,
    ) -> int:
        tokens = 0
        with frozen(self.parameters), LayerTap(self.model, self.parameters, consumers) as tap:
            for members, share in batches:
                batch = collate(members, share, self.device)
                try:
                    self._one_batch(batch, tap)
                except torch.OutOfMemoryError as error:
                    raise out_of_memory(batch, self.batch_tokens) from error
                tokens += batch.tokens
                if progress:
                    progress(batch.prompts)
        return tokens

    def _batches(
        self, prepared: Sequence[PreparedGroup]
    ) -> Iterator[tuple[list[PreparedGroup], bool]]:
        """Batches of prompts that share their prefix, then of those better off without."""
        sharing = [g for g in prepared if self.path == "shared" and self._worth_sharing(g)]
        chosen = {g.index for g in sharing}
        alone = [g for g in prepared if g.index not in chosen]
        budget = Budget(self.batch_tokens, self._most_predictions())
        for groups, share in ((sharing, True), (alone, False)):
            for members in plan(groups, budget, share):
                yield members, share

    def _most_predictions(self) -> int:
        """How many rows of logits a batch may have; about five fp32 copies live at once."""
        vocabulary = len(self.model.get_output_embeddings().weight)  # type: ignore[operator]
        return max(1, LOGITS_BYTES.get(self.device.type, 1 << 29) // (4 * vocabulary))

    def _worth_sharing(self, group: PreparedGroup) -> bool:
        """Whether one long row costs less than a row a response, and the model may see it.

        Linear layers cost about 24 h^2 a position, dense attention 4 h a pair of positions. The
        block mask knows nothing of sliding windows, so a row must fit in one.
        """
        config = text_config(self.model)
        width = getattr(config, "hidden_size", None) or 1024

        def cost(length: int) -> int:
            return length * (6 * width + length)

        length = group.shared_length
        worth = cost(length) <= sum(map(cost, group.row_lengths))
        return worth and length <= attention_window(config)

    def _one_batch(self, batch: Batch, tap: LayerTap) -> None:
        """Forward, write the logits' gradient, backward; the tap does the rest."""
        with torch.enable_grad(), tap.watching(batch):
            logits_SV = forward_logits(self.model, batch)
            gradient_SV = logits_gradient(logits_SV.detach(), batch, self.objective)
            gradient_SV = gradient_SV.to(logits_SV.dtype)  # the fp32 copy goes before backward
            torch.autograd.backward(logits_SV, gradient_SV)

    def _choose_path(
        self, prepared: Sequence[PreparedGroup], tolerance: tuple[float, float]
    ) -> str:
        """The fastest path whose gradients agree with plain autograd on a short prompt.

        "shared" needs both ways to agree, as prompts that gain nothing go in rows.
        """
        group, expected = reference(self.model, self.parameters, prepared, self.objective)
        try:
            require_covered(self.model, self.parameters)
            self._require_agreement(group, expected, tolerance, share=False)
        except Unsupported as unsupported:
            warnings.warn(
                "per-prompt gradients fall back to one prompt at a time, which is slow: "
                f"{unsupported}",
                stacklevel=3,
            )
            return "autograd"
        if not self.share_prefix or not takes_block_masks(self.model):
            return "rows"
        try:
            self._require_agreement(group, expected, tolerance, share=True)
        except Unsupported:
            return "rows"
        return "shared"

    def _require_agreement(
        self,
        group: PreparedGroup,
        expected: dict[str, Tensor],
        tolerance: tuple[float, float],
        share: bool,
    ) -> None:
        """Raise Unsupported unless the fast gradients of `group` equal the expected ones."""
        comparison = Comparison(expected)
        self._run_fast([([replace(group, index=0)], share)], [comparison], None)
        comparison.conclude(*tolerance)


def out_of_memory(batch: Batch, batch_tokens: int) -> InputError:
    """The error for a batch that does not fit on the device."""
    rows, length = batch.shape
    return InputError(
        f"{batch.prompts} prompts in {rows} rows of {length} positions do not fit in the device's "
        f"memory; lower influence.batch_tokens (now {batch_tokens})"
        + ("" if batch.prompts > 1 else ", or use LoRA, a smaller dtype or shorter responses")
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off while gradients are measured; the former mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Keep autograd from computing weight gradients; the tap computes them per prompt."""
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
