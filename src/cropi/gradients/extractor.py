"""Per-prompt policy gradients, many prompts per backward pass, layer by layer.

One forward pass, one backward pass through the activations, and at each layer, as backward
reaches it, a batched matmul that gives every prompt's weight gradient. Consumers (dots with target
directions, norms, sketches) use it at once and it is freed: a full gradient never exists. Autograd
itself computes no weight gradient at all.

Two departures from the textbook: logits are computed only at positions that predict a token of the
policy's, and their gradient is written down (weight x (onehot - softmax) / temperature) instead of
being derived.

A model with layers that no rule covers, or whose fast gradients disagree with plain autograd on
a short prompt, takes the slow path (`self_check.py`), with a warning that says why.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from cropi.errors import InputError
from cropi.gradients import Unsupported
from cropi.gradients.batching import ROWS, BatchPlanner, ForwardMode, LongGroup, RankBatch
from cropi.gradients.collation import PreparedGroup, PromptBatch, prepare
from cropi.gradients.consumers import FactorConsumer, GradientConsumer, SharedConsumer
from cropi.gradients.forward import (
    PromptWeights,
    TokenWeights,
    checkpointed,
    evaluation_mode,
    forward_logits,
    frozen,
    in_float32,
    logits_gradient,
    no_weights,
    require_fitting,
)
from cropi.gradients.hooks import LayerHooks
from cropi.gradients.long_groups import LongGroupPass
from cropi.gradients.pass_record import ExtractionReport, PassRecord, sampled_by
from cropi.gradients.plain_pass import PlainPass
from cropi.gradients.ranks import (
    ALONE,
    Ranks,
    is_sharded,
    model_class_name,
    reshard,
    square_sum,
    tied_names,
)
from cropi.gradients.response_gradients import ResponseGroups, ResponseWeights
from cropi.gradients.self_check import (
    BF16_TOLERANCE,
    FP32_TOLERANCE,
    GradientComparison,
    Tolerance,
    exercises_block_mask,
    reference_gradient,
    require_covered,
)
from cropi.gradients.settings import ObjectiveConfig, TargetMemory
from cropi.gradients.tensor_parts import rank_parts
from cropi.schema import RolloutGroup

SKETCHES_OF_PARTS = (
    "a sketch needs whole parameters, and each process of a tensor parallel model has parts of "
    "them; use the sketch exact with the metric cosine, or split the model with fsdp"
)
"""Why sketches are refused where ranks share prompts."""


class UnmatchedPatternError(InputError):
    """A pattern of parameter names that matches none of the trainable parameters."""


def trainable_parameters(
    model: nn.Module, patterns: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters over which a prompt's gradient is taken, by name, tied weights once.

    `patterns` select the names that match one of them, as in a shell (`model.layers.*.mlp.*`).
    Raises InputError if nothing is trainable, UnmatchedPatternError if a pattern matches nothing.
    """
    ties = tied_names(model)
    named = {n: p for n, p in model.named_parameters() if n not in ties}
    trainable = {n: p for n, p in named.items() if p.requires_grad}
    if not trainable:
        raise InputError(
            "the model has no trainable parameter (0 of its tensors require gradients); load it "
            "with trainable weights or adapters"
        )
    if patterns is None:
        return trainable
    for pattern in patterns:
        if not fnmatch.filter(trainable, pattern):
            raise UnmatchedPatternError(
                f"the parameter pattern {pattern!r} matches none of the {len(trainable)} trainable "
                f"parameters, such as {', '.join(list(trainable)[:3])}"
            )
    return {n: p for n, p in trainable.items() if any(fnmatch.fnmatchcase(n, g) for g in patterns)}


@dataclass
class GradientExtractor:
    """Streams per-prompt gradients of `model` into consumers.

    `batch_tokens` are padded positions per batch (default: by device); `share_prefix` computes a
    prompt once for all its responses where the model supports it; `gradient_checkpointing`
    recomputes activations in backward; `patterns` select parameters by name. Several `ranks` share
    the prompts, and all call the same methods with the same arguments. The gradient of a prompt
    whose responses exceed a batch is summed over parts, as `sum_memory` says. `revision` names
    the weights, as rollouts that they sampled do. After a run, `path` is "shared" (prefixes
    shared), "rows" (one row per response) or "autograd" (the slow path).
    """

    model: nn.Module
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch_tokens: int | None = None
    share_prefix: bool = True
    gradient_checkpointing: bool = False
    patterns: Sequence[str] | None = None
    ranks: Ranks = ALONE
    sum_memory: TargetMemory = "fp32"
    revision: str = ""
    path: str = field(default="", init=False)
    planner: BatchPlanner = field(init=False, repr=False)
    _verified: bool = field(default=False, init=False)
    _required: frozenset[str] = field(default=frozenset(), init=False)
    _emitted: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        reshard(self.model)
        self.parameters = trainable_parameters(self.model, self.patterns)
        if is_sharded(self.model) and (of := Ranks.of(self.model)).share_prompts:
            self.ranks = of
        self.parts = rank_parts(self.model, self.parameters, self.ranks)
        self.planner = BatchPlanner(self.model, self.batch_tokens, self.share_prefix)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.parameters.values())).device

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what consumers get gradients of, by name, in the model's order.

        Of ranks that share prompts: of the parts that this one counts.
        """
        return {name: part.shape for name, part in self.parts.items() if part.counted}

    @property
    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter that has gradients, by name, in the model's order."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    def run(
        self,
        groups: Sequence[RolloutGroup],
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None = None,
    ) -> ExtractionReport:
        """Stream the gradients of informative `groups`; consumers index them by list position.

        `progress` is called with the number of prompts that were finished since its last call.
        Raises InputError for rollouts that the model cannot have sampled, gradients that are not
        finite, and batches that do not fit in memory.
        """
        assert all(g.informative for g in groups), "an uninformative group has no gradient"
        prepared = [prepare(n, g) for n, g in enumerate(groups)]
        if not prepared:
            return ExtractionReport(0, self.path)
        record = PassRecord(len(prepared))
        with self._ready(groups, prepared), self._together(consumers):
            if self.path == "autograd":
                tokens = self._plain.run(prepared, consumers, progress or _unseen, record)
            else:
                fitting, long = self.planner.separate(prepared)
                tokens = self._run_long(
                    long, lambda parts, group: parts.run(group, consumers, record), progress
                )
                rank_batches = self.planner.rank_batches(fitting, self.ranks.prompt_ranks)
                weigh = PromptWeights(self.objective, record)
                tokens += self._run_fast(rank_batches, consumers, weigh, progress)
        record.join(self.ranks.prompt_ranks)
        is_sampler = [sampled_by(group, self.revision) for group in groups]
        return record.report(tokens, self.path, np.array(is_sampler))

    def run_by_response(
        self,
        responses: ResponseGroups,
        consumers: Sequence[GradientConsumer],
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Stream the gradient of each unique response, and return the tokens through the model.

        Consumers get the indices of unique responses. Prompts that are out of range give zeros.
        Raises as `run`.
        """
        prepared = responses.prepared
        with self._ready(responses.groups, prepared), self._together(consumers):
            if self.path == "autograd":
                return self._plain.run_by_response(prepared, consumers, progress or _unseen)
            fitting, long = self.planner.separate(prepared, ROWS)
            tokens = self._run_long(
                long, lambda parts, group: parts.run_by_response(group, consumers), progress
            )
            rank_batches = self.planner.rank_batches(fitting, self.ranks.prompt_ranks, ROWS)
            weigh = ResponseWeights(self.objective)
            return tokens + self._run_fast(
                rank_batches, consumers, weigh, progress, by_response=True
            )

    @contextmanager
    def _together(self, consumers: Sequence[GradientConsumer]) -> Iterator[None]:
        """Give every rank what all of them have collected in between."""
        shared = [each for each in consumers if isinstance(each, SharedConsumer)]
        others = [type(each) for each in consumers if not isinstance(each, SharedConsumer)]
        if self.ranks.several and others:
            raise InputError(
                f"{others[0].__name__} cannot be filled by {self.ranks.size} processes together; "
                "give it a method add_up, or compute in one process"
            )
        if self.ranks.share_prompts and any(isinstance(each, FactorConsumer) for each in consumers):
            raise InputError(SKETCHES_OF_PARTS)
        yield
        for consumer in shared:
            consumer.add_up(self.ranks)

    @contextmanager
    def _ready(
        self, groups: Sequence[RolloutGroup], prepared: Sequence[PreparedGroup]
    ) -> Iterator[None]:
        """The model in the state in which gradients are computed, by a path that was checked."""
        require_fitting(self.model, groups)
        with evaluation_mode(self.model), checkpointed(self.model, self.gradient_checkpointing):
            if not self._verified:
                with in_float32(self.model) as is_float32:
                    tolerance = FP32_TOLERANCE if is_float32 else BF16_TOLERANCE
                    self.path = self._choose_path(prepared, tolerance)
            yield
            reshard(self.model)

    @property
    def _plain(self) -> PlainPass:
        return PlainPass(self.model, self.parameters, self.objective, self.ranks)

    def _run_long(
        self,
        long: Sequence[LongGroup],
        run: Callable[[LongGroupPass, LongGroup], None],
        progress: Callable[[int], None] | None,
    ) -> int:
        """`run` each prompt whose responses go through in parts; the tokens, of all ranks."""
        in_parts = LongGroupPass(
            self.model,
            self.planner,
            self.objective,
            self.shapes,
            self.ranks.prompt_ranks,
            self.sum_memory,
            self._run_fast,
        )
        for group in long:
            run(in_parts, group)
            if progress:
                progress(1)
        return in_parts.tokens

    def _run_fast(
        self,
        rank_batches: Iterable[RankBatch],
        consumers: Sequence[GradientConsumer],
        weigh: TokenWeights,
        progress: Callable[[int], None] | None = None,
        by_response: bool = False,
        everywhere: bool = False,
    ) -> int:
        """The tokens that went through the model, of all ranks."""
        hooks = LayerHooks(
            self.model,
            self.parameters,
            consumers,
            self._required,
            self.ranks,
            self.parts,
            everywhere,
        )
        tokens = 0
        with frozen(self.model), hooks:
            for rank_batch in rank_batches:
                with self.planner.batch(rank_batch.members, rank_batch.mode, by_response) as batch:
                    self._run_batch(batch, hooks, no_weights if rank_batch.idle else weigh)
                tokens += 0 if rank_batch.idle else batch.tokens
                if progress:
                    progress(rank_batch.prompts)
        self._emitted = frozenset(hooks.emitted)
        dealt = self.ranks.prompt_ranks
        return int(dealt.total(tokens)) if dealt.several else tokens

    def _run_batch(self, batch: PromptBatch, hooks: LayerHooks, weigh: TokenWeights) -> None:
        """Forward, write the logits' gradient, backward; the hooks do the rest."""
        with torch.enable_grad(), hooks.collecting(batch):
            logits_1SV = forward_logits(self.model, batch)
            hooks.forward_done()
            # Backward does not need the logits, so their gradient overwrites them. A model whose
            # backward does need them fails the comparison with autograd.
            gradient_SV = logits_gradient(logits_1SV.data[0], batch, weigh)
            torch.autograd.backward(logits_1SV, gradient_SV.unsqueeze(0))

    def _choose_path(self, prepared: Sequence[PreparedGroup], tolerance: Tolerance) -> str:
        """The fastest path whose gradients agree with plain autograd on a short prompt."""
        short = self.planner.shortened(prepared)
        group, expected = reference_gradient(self.model, self.parameters, short, self.objective)
        # A prompt that cannot exercise the check does not count as verified.
        has_gradient = any(square_sum(e) > 0 for e in expected.values())
        self._verified = exercises_block_mask(group) and has_gradient

        def require_agreement(mode: ForwardMode) -> None:
            self._require_agreement(group, expected, tolerance, mode)

        try:
            require_covered(self.model, self.parameters)
            # Prompts that do not fit another mode take this one, so it must always agree.
            require_agreement(ROWS)
        except Unsupported as unsupported:
            if self.ranks.share_prompts:
                raise InputError(
                    f"the gradients of {model_class_name(self.model)} cannot be taken in parts "
                    f"(tensor parallel): {unsupported}; split it with fsdp"
                ) from unsupported
            warnings.warn(
                "per-prompt gradients fall back to one prompt at a time, which is slow: "
                f"{unsupported}",
                stacklevel=3,
            )
            return "autograd"
        self._required = self._emitted
        self.planner.choose_mode(require_agreement)
        return "shared" if self.planner.best_mode.share_prefix else "rows"

    def _require_agreement(
        self,
        group: PreparedGroup,
        expected: dict[str, Tensor],
        tolerance: Tolerance,
        mode: ForwardMode,
    ) -> None:
        """Raise Unsupported unless the fast gradients of `group` equal the expected ones."""
        comparison = GradientComparison(expected, self.ranks)
        try:
            weigh = PromptWeights(self.objective)
            # All ranks compute the same prompt.
            rank_batch = RankBatch([replace(group, index=0)], mode, 1)
            self._run_fast([rank_batch], [comparison], weigh, everywhere=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Autograd refuses hooks on outputs that the model later changes in place.
            raise Unsupported(str(error).splitlines()[0]) from error
        comparison.raise_if_different(tolerance)


def _unseen(prompts: int) -> None:
    """Progress that nobody follows."""
