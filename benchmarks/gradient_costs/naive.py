"""The naive design: one prompt at a time, everything recomputed, the full vector in memory.

Behaviour and reference log-probs by a forward pass each (logits at every position), forward and
backward with micro-batched responses (logits at every position again), all gradients concatenated
to one fp32 vector, and, where asked, that vector hashed with signs by `index_add_`. In its favour:
rows are batched in the floor's micro-batch, the hash's tables are kept in memory, and nothing is
written to disk.

Shape legend: N rows, L positions, V vocabulary, C coordinates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cropi.schema import RolloutGroup
from gradient_costs.floor import Rows

BLOCK = 1 << 22


class Naive:
    """Gradients of single prompts, the naive way; `dim` buckets, tables made on first use."""

    def __init__(self, model: Any, micro_batch: int, dim: int = 8192) -> None:
        self.model, self.micro_batch, self.dim = model, micro_batch, dim
        self.device = next(iter(model.parameters())).device
        self._tables: tuple[Tensor, Tensor] | None = None

    def run(self, group: RolloutGroup) -> Tensor:
        """The gradient of one prompt [C]; an uninformative one costs as much."""
        rows = Rows.of([group], self.device)
        parts = list(rows.parts(self.micro_batch))
        with torch.no_grad():
            behaviour = [self._logprobs(part) for part in parts]
            for part in parts:
                self._logprobs(part)  # of the reference policy, for a KL term
        self.model.zero_grad(set_to_none=True)
        for part, old_S in zip(parts, behaviour, strict=True):
            ratio_S = (self._logprobs(part) - old_S).exp()
            (ratio_S * part.weight_S).sum().backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten().float() for p in self.model.parameters()])

    def prepare(self) -> None:
        """Make the hash's tables, which are not part of a prompt's cost."""
        size = sum(p.numel() for p in self.model.parameters())
        if self._tables is None:
            generator = torch.Generator(self.device).manual_seed(0)
            options: dict[str, Any] = {"device": self.device, "generator": generator}
            buckets = torch.randint(self.dim, (size,), dtype=torch.int32, **options)
            signs = torch.randint(2, (size,), dtype=torch.int8, **options).mul_(2).sub_(1)
            self._tables = buckets, signs

    def _logprobs(self, rows: Rows) -> Tensor:
        """Log-probs [S] of the response tokens, picked from those of all positions."""
        logits_NLV = self.model(input_ids=rows.ids_NL, use_cache=False).logits
        next_NL = functional.pad(rows.ids_NL[:, 1:], (0, 1))
        next_NL[rows.row_S, rows.position_S] = rows.target_S
        losses = functional.cross_entropy(
            logits_NLV.flatten(0, 1).float(), next_NL.flatten(), reduction="none"
        )
        return -losses.view_as(next_NL)[rows.row_S, rows.position_S]

    def project(self, vector_C: Tensor) -> Tensor:
        """The sketch [dim] of a gradient."""
        assert self._tables is not None, "prepare comes first"
        buckets_C, signs_C = self._tables
        out = vector_C.new_zeros(self.dim)
        for start in range(0, len(vector_C), BLOCK):
            part = slice(start, start + BLOCK)
            out.index_add_(0, buckets_C[part], vector_C[part] * signs_C[part])
        return out
