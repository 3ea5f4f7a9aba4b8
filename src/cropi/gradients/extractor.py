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

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.autograd import prompt_gradient
from cropi.gradients.batching import Batch, PreparedGroup, collate, plan, prepare
from cropi.gradients.layers import (
    Contribution,
    LayerRule,
    Unsupported,
    embedding_rule,
    head_rule,
    linear_rule,
    rule_for,
)
from cropi.gradients.objective import token_weights
from cropi.schema import RolloutGroup

DENSE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Bytes of dense per-prompt gradients of one layer that exist at once, unless one prompt needs
more. On a CPU they should stay in its cache: they are written once and read twice."""


STRICT, LOOSE = (1e-3, 1e-3), (0.4, 0.15)
"""Shares by which the fast gradient of (one parameter, all together) may differ from autograd's, in
fp32 and in bf16, where two right ways to compute differ by 0.24 and 0.06 on SmolLM2-135M."""

REFERENCES = 4
"""Prompts to try, at most, in search of one whose gradient is not zero."""


class GradientConsumer(Protocol):
    """Takes per-prompt gradients as they are made."""

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Use fp32 `gradient` [P, *shape] of parameter `name`, prompts `index_P` int64.

        Each (prompt, parameter) comes exactly once; a parameter that never comes is zero. The
        tensor is reused afterwards and must not be kept.
        """


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
        require_known_ids(self.model, groups)
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
                self._one_batch(batch, tap)
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
        for groups, share in ((sharing, True), (alone, False)):
            for members in plan(groups, self.batch_tokens, share):
                yield members, share

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
            torch.autograd.backward(logits_SV, gradient_SV.to(logits_SV.dtype))

    def _choose_path(
        self, prepared: Sequence[PreparedGroup], tolerance: tuple[float, float]
    ) -> str:
        """The fastest path whose gradients agree with plain autograd on a short prompt.

        "shared" needs both ways to agree, as prompts that gain nothing go in rows.
        """
        group, expected = self._reference(prepared)
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

    def _reference(
        self, prepared: Sequence[PreparedGroup]
    ) -> tuple[PreparedGroup, dict[str, Tensor]]:
        """A short prompt that can show a difference, with its gradient by plain autograd.

        Two responses of two tokens are needed for a block mask to matter, and a gradient that is
        not zero for anything to.
        """

        def order(group: PreparedGroup) -> tuple[bool, int, int]:
            telling = sum(len(ids) >= 2 for ids in group.distinct) >= 2
            return not telling, group.shared_length, group.index

        for group in sorted(prepared, key=order)[:REFERENCES]:
            expected = prompt_gradient(self.model, self.parameters, group, self.objective)
            check_finite(expected)
            if any(bool(gradient.any()) for gradient in expected.values()):
                break
        return group, expected

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
def in_float32(model: nn.Module) -> Iterator[tuple[float, float]]:
    """Compute in fp32 for a while, and yield how closely paths must then agree.

    The rounding of bf16 would hide a wrong gradient, or condemn a right one. The way there and
    back changes no bit. Quantised weights and attention that knows no fp32 stay as they are.
    """
    half = (torch.bfloat16, torch.float16)
    coarse = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in half]
    quantised = any(p.dtype.itemsize < 4 and p.dtype not in half for p in model.parameters())
    if coarse and (quantised or not takes_block_masks(model)):
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


def check_finite(gradients: dict[str, Tensor]) -> None:
    """Raise InputError where the model itself gives NaN or infinite gradients."""
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise InputError(
                f"the gradient of {name} is not finite (NaN or infinity); check the checkpoint's "
                "weights and the rollouts' log-probs, or compute in float32"
            )


def text_config(model: nn.Module) -> Any:
    """The config of the language model, within a multimodal one too; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def attention_window(config: Any) -> float:
    """Positions that every layer sees, where some layers attend locally."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=math.inf)


def takes_block_masks(model: nn.Module) -> bool:
    """Whether the attention in use reads a mask of who sees whom; flash attention does not."""
    implementation = getattr(text_config(model), "_attn_implementation", None)
    return implementation in (None, "sdpa", "eager")


def require_covered(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Raise Unsupported where the fast path could not even be tried."""
    if missing := uncovered(model, parameters):
        raise Unsupported(f"no rule for {', '.join(missing[:3])}")
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise Unsupported(f"{type(base).__name__} takes no position_ids")


def require_known_ids(model: nn.Module, groups: Sequence[RolloutGroup]) -> None:
    """Raise InputError naming the first prompt with a token id that has no embedding."""
    known = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    for group in groups:
        largest = max(int(ids.max()) for ids in (group.prompt_ids, *(r.ids for r in group.usable)))
        if largest >= known:
            raise InputError(
                f"prompt {group.prompt_id} has token id {largest}, and the model has {known} token "
                "embeddings; score rollouts with the tokenizer and model family that sampled them"
            )


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


def forward_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [S, V] at the predicting positions (the tap narrows the head's input to them)."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids_NL,
        "position_ids": batch.position_ids_NL,
        "use_cache": False,
    }
    if batch.mask_N1LL is not None:
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(batch.mask_N1LL.shape, dtype=dtype, device=batch.input_ids_NL.device)
        mask.masked_fill_(~batch.mask_N1LL, torch.finfo(dtype).min)
        inputs["attention_mask"] = mask
    logits = model(**inputs).logits
    if logits.shape[:2] != (1, len(batch.predictors_S)):
        raise Unsupported(f"logits of shape {tuple(logits.shape)}: the head is not where expected")
    return logits[0]  # type: ignore[no-any-return]


def logits_gradient(logits_SV: Tensor, batch: Batch, objective: ObjectiveConfig) -> Tensor:
    """dJ/dlogits [S, V]: sum over predicted tokens of weight (onehot - softmax) / temperature."""
    scaled_SV = logits_SV.float() / batch.temperature_S.unsqueeze(1)
    logps_SV = torch.log_softmax(scaled_SV, dim=-1)
    logp_DT = logps_SV[batch.where_DT, batch.targets_DT]
    longest = batch.responses.mask_RT.shape[1]
    logp_RT = logp_DT[batch.which_R, :longest]
    weights_RT = token_weights(logp_RT, batch.responses, objective)
    weights_DT = torch.zeros_like(logp_DT, dtype=torch.float64)
    weights_DT.index_add_(0, batch.which_R, weights_RT)
    flat_weights = weights_DT.flatten()
    total_S = flat_weights.new_zeros(len(logits_SV)).index_add(
        0, batch.where_DT.flatten(), flat_weights
    )
    gradient_SV = logps_SV.exp_().mul_(-total_S.float().unsqueeze(1))
    gradient_SV.index_put_(
        (batch.where_DT.flatten(), batch.targets_DT.flatten()),
        flat_weights.float(),
        accumulate=True,
    )
    return gradient_SV / batch.temperature_S.unsqueeze(1)


class LayerTap:
    """Hooks on every layer with wanted parameters; hands per-prompt gradients to consumers.

    A use of a parameter is counted in forward and settled in backward; when the last use of a
    tied weight has arrived, the sum is made, a few prompts at a time, and consumed.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        consumers: Sequence[GradientConsumer],
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.consumers = consumers
        self.names = {id(p): name for name, p in parameters.items()}
        self.batch: Batch | None = None
        self.expected: dict[str, int] = {}
        self.waiting: dict[str, list[Contribution]] = {}
        self._buffer = torch.empty(0)
        self._hooks = ExitStack()

    def __enter__(self) -> LayerTap:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        if head is None or embedding is None:
            raise Unsupported("the model does not name its embeddings")
        self._watch(head.register_forward_pre_hook(self._narrow, prepend=True))
        for module in self.model.modules():
            rule = rule_for(module)
            wanted = any(id(p) in self.names for p in module.parameters(recurse=False))
            if module is embedding or (wanted and rule is embedding_rule):
                self._watch(module.register_forward_hook(self._start_graph))
            if module is head and rule is linear_rule:
                rule = head_rule
            if rule is not None and wanted:
                self._watch(module.register_forward_hook(self._recorder(rule)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _watch(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """Collect for one batch; whatever has no further use is consumed at the end."""
        self.batch, self.expected, self.waiting = batch, {}, {}
        try:
            yield
            for name in list(self.waiting):
                self._settle(name)
        finally:
            self.batch, self.waiting = None, {}

    def _start_graph(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """With all weights frozen, the graph begins at the embedded tokens."""
        return output if output.requires_grad or self.batch is None else output.requires_grad_(True)

    def _narrow(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Let the head see only the positions that predict a response token."""
        if self.batch is None:
            return None
        (hidden,) = inputs
        if hidden.shape[:2] != self.batch.shape:
            raise Unsupported(f"the head sees {tuple(hidden.shape)}, not rows x positions")
        return (hidden.flatten(0, 1)[self.batch.predictors_S].unsqueeze(0),)

    def _recorder(self, rule: LayerRule) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            batch = self.batch
            # Rules may call a layer again, without gradients, to see what it computes.
            if batch is None or not torch.is_grad_enabled():
                return
            if len(inputs) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
                raise Unsupported(f"{type(module).__name__} is not called as a plain layer")
            seen = inputs[0].detach()
            for parameter in module.parameters(recurse=False):
                if name := self.names.get(id(parameter)):
                    self.expected[name] = self.expected.get(name, 0) + 1

            def settle(gradient: Tensor) -> None:
                with torch.no_grad():
                    self._collect(module, rule(module, seen, gradient, batch))

            output.register_hook(settle)  # type: ignore[no-untyped-call]

        return record

    def _collect(
        self, module: nn.Module, contributions: Iterator[tuple[str, Contribution]]
    ) -> None:
        for local, contribution in contributions:
            name = self.names.get(id(getattr(module, local)))
            if name is None:
                continue
            self.waiting.setdefault(name, []).append(contribution)
            if len(self.waiting[name]) == self.expected[name]:
                self._settle(name)

    def _settle(self, name: str) -> None:
        """Sum the uses of a parameter and hand the gradients on, a few prompts at a time."""
        assert self.batch is not None
        contributions = self.waiting.pop(name)
        shape = tuple(self.parameters[name].shape)
        prompts = self.batch.prompts
        limit = DENSE_BYTES.get(self.batch.index_P.device.type, 1 << 28)
        step = max(1, min(prompts, limit // (4 * math.prod(shape))))
        for start in range(0, prompts, step):
            index_P = self.batch.index_P[start : start + step]
            gradient = self._scratch(len(index_P), shape)
            for n, contribution in enumerate(contributions):
                contribution.add_to(gradient, start, first=n == 0)
            for consumer in self.consumers:
                consumer.consume(name, index_P, gradient)

    def _scratch(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """A fp32 [count, *shape] piece of one buffer: fresh memory costs more than the sums."""
        size = count * math.prod(shape)
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, device=next(iter(self.parameters.values())).device)
        return self._buffer[:size].view(count, *shape)


@dataclass
class Comparison:
    """A consumer that holds the fast gradients of one prompt to the expected ones."""

    expected: dict[str, Tensor]
    difference: dict[str, float] = field(default_factory=dict)

    def consume(self, name: str, index_P: Tensor, gradient: Tensor) -> None:
        """Note how far one parameter's gradient is from the expected one."""
        self.difference[name] = float((gradient[0] - self.expected[name].float()).norm())

    def conclude(self, one: float, whole: float) -> None:
        """Raise Unsupported where gradients differ by more than a share of their norms.

        `one` is the share allowed for a single parameter, `whole` for all together. Gradients
        that are tiny beside the whole are held to the whole's rounding instead.
        """
        norms = {name: float(g.float().norm()) for name, g in self.expected.items()}
        off = {name: self.difference.get(name, norm) for name, norm in norms.items()}
        total = math.hypot(*norms.values())
        for name, norm in norms.items():
            # Written so that NaN is a disagreement.
            if not off[name] <= one * norm + 1e-2 * whole * total:
                raise Unsupported(f"the fast gradient of {name} disagrees with autograd")
        if not math.hypot(*off.values()) <= whole * total:
            raise Unsupported("the fast gradient disagrees with autograd")


__all__ = [
    "ExtractionReport",
    "GradientConsumer",
    "GradientExtractor",
    "trainable",
]
