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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.agreement import Comparison, in_float32, reference, require_covered
from cropi.gradients.attention import PrefixAttention, takes_our_attention
from cropi.gradients.autograd import prompt_gradient
from cropi.gradients.batching import BATCH_TOKENS, Budget, PreparedGroup, plan, prepare
from cropi.gradients.collation import Batch, collate
from cropi.gradients.forward import (
    attention_window,
    forward_logits,
    logits_gradient,
    require_fitting,
    takes_block_masks,
    text_config,
)
from cropi.gradients.layers import Unsupported
from cropi.gradients.modes import checkpointed, evaluation_mode, frozen
from cropi.gradients.tap import GradientConsumer, LayerTap, hand_over
from cropi.schema import RolloutGroup

LOGITS_BYTES = {"cpu": 1 << 29, "cuda": 1 << 33}
"""Most bytes that a batch's logits would take in fp32; they exist once, in the model's dtype."""


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


@dataclass(frozen=True, order=True)
class Route:
    """How a prompt goes through the model: prefix shared or not, with attention of ours or its."""

    share: bool
    ours: bool = False


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
    ours: bool = field(default=False, init=False)
    _attention: PrefixAttention = field(default_factory=PrefixAttention, init=False)

    def __post_init__(self) -> None:
        self.parameters = trainable(self.model, self.patterns)
        self._batch_tokens = self.batch_tokens or BATCH_TOKENS.get(self.device.type, 16384)

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
        batches: Iterable[tuple[list[PreparedGroup], Route]],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None,
    ) -> int:
        tokens = 0
        with frozen(self.model), LayerTap(self.model, self.parameters, consumers) as tap:
            for members, route in batches:
                batch = collate(members, route.share, self.device, masked=not route.ours)
                try:
                    with self._attention.installed(self.model, batch if route.ours else None):
                        self._one_batch(batch, tap)
                except torch.OutOfMemoryError as error:
                    raise out_of_memory(batch, self._batch_tokens) from error
                tokens += batch.tokens
                if progress:
                    progress(batch.prompts)
        return tokens

    def _batches(
        self, prepared: Sequence[PreparedGroup]
    ) -> Iterator[tuple[list[PreparedGroup], Route]]:
        """Batches of prompts of one route; all of them go the best they can."""
        routes: dict[Route, list[PreparedGroup]] = {}
        for group in prepared:
            routes.setdefault(self._route(group), []).append(group)
        budget = Budget(self._batch_tokens, self._most_predictions())
        for route in sorted(routes, reverse=True):
            for members in plan(routes[route], budget, route.share):
                yield members, route

    def _route(self, group: PreparedGroup) -> Route:
        """How one prompt goes. Shared prefixes know no sliding windows: they must fit in one."""
        window = attention_window(text_config(self.model))
        share = self.path == "shared"
        if self.ours and max(group.row_lengths) <= window:
            return Route(share, ours=True)
        return Route(share and group.shared_length <= window and self._worth_masking(group))

    def _worth_masking(self, group: PreparedGroup) -> bool:
        """Whether one long row under a block mask costs less than a row a response.

        Linear layers cost about 24 h^2 a position, dense attention 4 h a pair of positions.
        """
        width = getattr(text_config(self.model), "hidden_size", None) or 1024

        def cost(length: int) -> int:
            return length * (6 * width + length)

        return not self.ours and cost(group.shared_length) <= sum(map(cost, group.row_lengths))

    def _most_predictions(self) -> int:
        """How many rows of logits a batch may have."""
        vocabulary = len(self.model.get_output_embeddings().weight)  # type: ignore[operator]
        return max(1, LOGITS_BYTES.get(self.device.type, 1 << 29) // (4 * vocabulary))

    def _one_batch(self, batch: Batch, tap: LayerTap) -> None:
        """Forward, write the logits' gradient, backward; the tap does the rest."""
        with torch.enable_grad(), tap.watching(batch):
            logits_SV = forward_logits(self.model, batch)
            tap.forward_is_done()
            # Backward needs the logits no more, so their gradient takes their place. A model for
            # which that is not so fails the comparison with autograd.
            gradient_SV = logits_gradient(logits_SV.data, batch, self.objective)
            torch.autograd.backward(logits_SV, gradient_SV)

    def _choose_path(
        self, prepared: Sequence[PreparedGroup], tolerance: tuple[float, float]
    ) -> str:
        """The fastest path whose gradients agree with plain autograd on a short prompt."""
        group, expected = reference(self.model, self.parameters, prepared, self.objective)

        def agrees(share: bool, ours: bool) -> bool:
            try:
                self._require_agreement(group, expected, tolerance, Route(share, ours))
            except Unsupported:
                return False
            return True

        try:
            require_covered(self.model, self.parameters)
            # Prompts that cannot go another way go in rows, so those must agree whatever else does.
            self._require_agreement(group, expected, tolerance, Route(share=False))
        except Unsupported as unsupported:
            warnings.warn(
                "per-prompt gradients fall back to one prompt at a time, which is slow: "
                f"{unsupported}",
                stacklevel=3,
            )
            return "autograd"
        self.ours = takes_our_attention(self.model) and agrees(self.share_prefix, ours=True)
        if not self.share_prefix or not (self.ours or takes_block_masks(self.model)):
            return "rows"
        return "shared" if self.ours or agrees(share=True, ours=False) else "rows"

    def _require_agreement(
        self,
        group: PreparedGroup,
        expected: dict[str, Tensor],
        tolerance: tuple[float, float],
        route: Route,
    ) -> None:
        """Raise Unsupported unless the fast gradients of `group` equal the expected ones."""
        comparison = Comparison(expected)
        self._run_fast([([replace(group, index=0)], route)], [comparison], None)
        comparison.conclude(*tolerance)


def out_of_memory(batch: Batch, batch_tokens: int) -> InputError:
    """The error for a batch that does not fit on the device."""
    rows, length = batch.shape
    return InputError(
        f"{batch.prompts} prompts in {rows} rows of {length} positions do not fit in the device's "
        f"memory; lower influence.batch_tokens (now {batch_tokens}), or set "
        "influence.gradient_checkpointing=true"
        + ("" if batch.prompts > 1 else ", or use LoRA, a smaller dtype or shorter responses")
    )
