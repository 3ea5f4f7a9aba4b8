"""Log-probs of stored responses under a policy: forward passes only, prompts shared.

The batches are those of the gradients (`gradients.batching`): a prompt once for all its
responses where the model's attention allows it, equal responses once, logits only where a
response token is predicted. As there, the fast way is not trusted but compared with the plain
one on a short prompt first; what disagrees goes one response at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cropi.gradients.autograd import response_logprobs
from cropi.gradients.batching import PreparedGroup, prepare
from cropi.gradients.collation import Batch, collate
from cropi.gradients.forward import forward_logits, log_probs, require_fitting
from cropi.gradients.layers import Unsupported
from cropi.gradients.modes import evaluation_mode
from cropi.gradients.objective import objective
from cropi.gradients.routing import PLAIN, BatchPlanner, ForwardMode
from cropi.gradients.self_check import STRICT, in_float32, require_covered
from cropi.gradients.settings import ObjectiveConfig
from cropi.schema import RolloutGroup

CLOSE, COARSE = 1e-3, 0.25
"""Nats by which a log-prob may differ between the fast and the plain way: in fp32, and in bf16."""

Advance = Callable[[int], None]


@dataclass
class LogprobReader:
    """Reads log-probs of stored responses under `model`, many prompts a forward pass.

    `path` is how prompts go, once known: "shared" (a prompt once for all its responses), "rows" (a
    row a response) or "plain" (one response at a time).
    """

    model: nn.Module
    batch_tokens: int | None = None
    share_prefix: bool = True
    path: str = field(default="", init=False)
    router: BatchPlanner = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.router = BatchPlanner(self.model, self.batch_tokens, self.share_prefix)

    def batches(
        self, groups: Sequence[RolloutGroup], advance: Advance | None = None
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches with the log-probs of their usable responses, float64 [R, T].

        Padding holds 0. Every group needs a usable response; `batch.index_P` are places in
        `groups`. Raises InputError for rollouts that the model cannot have sampled.
        """
        require_fitting(self.model, groups)
        prepared = [prepare(n, g) for n, g in enumerate(groups)]
        with torch.inference_mode(), evaluation_mode(self.model):
            self.path = self.path or self._choose_path(prepared)
            if self.path == "plain":
                found = (self._read_plainly(group) for group in prepared)
            else:
                found = (self._read(*each) for each in self.router.batches(prepared))
            for batch, logp_RT in found:
                yield batch, logp_RT
                if advance:
                    advance(batch.prompts)

    def _read(self, members: Sequence[PreparedGroup], route: ForwardMode) -> tuple[Batch, Tensor]:
        with self.router.through(members, route) as batch:
            return batch, batch_logprobs(self.model, batch)

    def _read_plainly(self, group: PreparedGroup) -> tuple[Batch, Tensor]:
        batch = collate([group], False, self.router.device)
        return batch, plain_logprobs(self.model, [group])

    def _choose_path(self, prepared: Sequence[PreparedGroup]) -> str:
        """The fastest path that agrees with the plain one on a short prompt."""

        def order(group: PreparedGroup) -> tuple[bool, int]:
            telling = sum(len(ids) >= 2 for ids in group.distinct) >= 2
            return not telling, group.shared_length

        group = min(prepared, key=order)
        with in_float32(self.model) as tolerance:
            close = CLOSE if tolerance == STRICT else COARSE
            expected = plain_logprobs(self.model, [group])

            def require_agreement(route: ForwardMode) -> None:
                self._require_agreement(group, expected, close, route)

            try:
                require_covered(self.model, {})
                require_agreement(PLAIN)
            except Unsupported as unsupported:
                warnings.warn(
                    f"log-probs are read one response at a time, which is slow: {unsupported}",
                    stacklevel=4,
                )
                return "plain"
            self.router.choose(require_agreement)
        return "shared" if self.router.best.share else "rows"

    def _require_agreement(
        self, group: PreparedGroup, expected: Tensor, close: float, route: ForwardMode
    ) -> None:
        _, found = self._read([group], route)
        # Written so that NaN is a disagreement.
        if not float((found - expected).abs().max()) <= close:
            raise Unsupported("batched log-probs disagree with those of one response at a time")


def batch_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probs of a batch's usable responses at the rollouts' temperature, float64 [R, T]."""
    _, logp_DT = log_probs(forward_logits(model, batch)[0], batch)
    mask_RT = batch.responses.mask_RT
    logp_RT = logp_DT[batch.which_R, : mask_RT.shape[1]]
    return logp_RT.masked_fill(~mask_RT, 0.0)


def plain_logprobs(model: nn.Module, groups: Sequence[PreparedGroup]) -> Tensor:
    """The same, one distinct response at a time."""
    device = next(model.parameters()).device
    found = []
    for group in groups:
        prompt = torch.as_tensor(group.prompt_ids, dtype=torch.int64, device=device)
        distinct = [
            response_logprobs(model, prompt, ids.to(device), group.temperature).double()
            for ids in map(_int64, group.distinct)
        ]
        found += [distinct[which] for which in group.which]
    return nn.utils.rnn.pad_sequence(found, batch_first=True)


def _int64(ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def read_logprobs(
    reader: LogprobReader, groups: Sequence[RolloutGroup], advance: Advance | None = None
) -> list[list[np.ndarray]]:
    """Log-probs float64 [T] of each usable response of each group, in the groups' order."""
    found: list[list[np.ndarray]] = [[] for _ in groups]
    for batch, logp_RT in reader.batches(groups, advance):
        owners = batch.index_P[batch.responses.group_R].tolist()
        lengths = batch.responses.mask_RT.sum(1).tolist()
        for owner, length, logp in zip(owners, lengths, logp_RT.cpu().numpy(), strict=True):
            found[owner].append(logp[:length].copy())
    return found


def read_objectives(
    reader: LogprobReader,
    groups: Sequence[RolloutGroup],
    config: ObjectiveConfig,
    advance: Advance | None = None,
) -> np.ndarray:
    """J of each group under the reader's model, float64 [n] (docs/method.md)."""
    found = np.zeros(len(groups))
    for batch, logp_RT in reader.batches(groups, advance):
        values = objective(logp_RT, batch.responses, config)
        found[batch.index_P.cpu().numpy()] = values.cpu().numpy()
    return found
