"""How prompts go through a model: prefixes shared or not, and whose attention they see.

The best way a model allows is found by trying: attention of ours with the prefix shared, then a
block mask under the model's own attention, then a row a response. A prompt goes the best way that
its lengths allow; sharing knows no sliding windows, so it must fit in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from cropi.errors import InputError
from cropi.gradients.attention import PrefixAttention, takes_our_attention
from cropi.gradients.batching import BATCH_TOKENS, Budget, PreparedGroup, plan
from cropi.gradients.collation import Batch, collate
from cropi.gradients.forward import attention_window, takes_block_masks, text_config
from cropi.gradients.layers import Unsupported

LOGITS_BYTES = {"cpu": 1 << 29, "cuda": 1 << 33}
"""Most bytes that a batch's logits would take in fp32; they exist once, in the model's dtype."""


@dataclass(frozen=True, order=True)
class ForwardMode:
    """One way: the prefix shared or not, with attention of ours or the model's."""

    share: bool
    ours: bool


PLAIN = ForwardMode(share=False, ours=False)


class BatchPlanner:
    """Plans batches of prompts, and takes them through `model` one after the other.

    `best` is the best route the model allows; PLAIN until `choose` found better.
    """

    def __init__(self, model: nn.Module, batch_tokens: int | None, share_prefix: bool) -> None:
        self.model = model
        self.share_prefix = share_prefix
        self.device = next(model.parameters()).device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, 16384)
        self.best = PLAIN
        self._attention = PrefixAttention()

    def choose(self, require_agreement: Callable[[ForwardMode], None]) -> None:
        """Settle on the first route, best first, that `require_agreement` lets pass.

        It raises Unsupported where a route's results differ from the plain way's.
        """
        routes = []
        if takes_our_attention(self.model):
            routes.append(ForwardMode(self.share_prefix, ours=True))
        if self.share_prefix and takes_block_masks(self.model):
            routes.append(ForwardMode(share=True, ours=False))
        self.best = PLAIN
        for route in routes:
            with suppress(Unsupported):
                require_agreement(route)
                self.best = route
                return

    def batches(
        self, prepared: Sequence[PreparedGroup]
    ) -> Iterator[tuple[list[PreparedGroup], ForwardMode]]:
        """Prompts that go together, and how."""
        routes: dict[ForwardMode, list[PreparedGroup]] = {}
        for group in prepared:
            routes.setdefault(self._route(group), []).append(group)
        budget = Budget(self.batch_tokens, self._most_predictions())
        for route in sorted(routes, reverse=True):
            for members in plan(routes[route], budget, route.share):
                yield members, route

    @contextmanager
    def through(self, members: Sequence[PreparedGroup], route: ForwardMode) -> Iterator[Batch]:
        """The batch of some prompts, with the route's attention in place for as long as it lasts.

        Raises InputError where it does not fit in the device's memory.
        """
        batch = collate(members, route.share, self.device, masked=not route.ours)
        try:
            with self._attention.installed(self.model, batch if route.ours else None):
                yield batch
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(batch) from error

    def _route(self, group: PreparedGroup) -> ForwardMode:
        window = attention_window(text_config(self.model))
        if self.best.ours:
            return self.best if max(group.row_lengths) <= window else PLAIN
        fits = group.shared_length <= window
        return self.best if fits and self._worth_masking(group) else PLAIN

    def _worth_masking(self, group: PreparedGroup) -> bool:
        """Whether one long row under a block mask costs less than a row a response.

        Linear layers cost about 24 h^2 a position, dense attention 4 h a pair of positions.
        """
        width = getattr(text_config(self.model), "hidden_size", None) or 1024

        def cost(length: int) -> int:
            return length * (6 * width + length)

        return cost(group.shared_length) <= sum(map(cost, group.row_lengths))

    def _most_predictions(self) -> int:
        """How many rows of logits a batch may have."""
        vocabulary = len(self.model.get_output_embeddings().weight)  # type: ignore[operator]
        return max(1, LOGITS_BYTES.get(self.device.type, 1 << 29) // (4 * vocabulary))

    def _out_of_memory(self, batch: Batch) -> InputError:
        rows, length = batch.shape
        mend = (
            f"lower influence.batch_tokens (now {self.batch_tokens})"
            if batch.prompts > 1
            else "use LoRA, a smaller dtype or shorter responses"
        )
        return InputError(
            f"{batch.prompts} prompts in {rows} rows of {length} positions do not fit in the "
            f"device's memory; {mend}, or set influence.gradient_checkpointing=true"
        )
