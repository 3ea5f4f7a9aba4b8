"""Which tokens go through the model together, and where each response is found again.

A prompt is one *row* where its prefix is shared: the prompt once, then every distinct response,
under a block mask in which a response sees the prompt and itself. Otherwise each distinct
response is a row of its own. A response's last token predicts nothing and is not fed; equal
responses of a group are computed once. A row never mixes prompts, so "the gradient of a prompt"
is always a sum over whole rows.

Rows are padded on the right. A causal model never looks there, so unshared rows need no mask at
all, and padded positions receive exactly zero gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cropi.gradients.objective import ResponseTensors
from cropi.schema import Response, RolloutGroup


@dataclass(frozen=True)
class PreparedGroup:
    """One informative prompt, with its distinct responses.

    `index` is its place in the caller's list; `distinct` the different token sequences, in order
    of first appearance; `which[k]` the distinct sequence that usable response k is.
    """

    index: int
    prompt_ids: np.ndarray
    responses: list[Response]
    distinct: list[np.ndarray]
    which: list[int]
    temperature: float

    @property
    def shared_length(self) -> int:
        """Positions of the row that holds the prompt once and every distinct response."""
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.distinct)

    @property
    def row_lengths(self) -> list[int]:
        """Positions of the rows that hold one distinct response each."""
        return [len(self.prompt_ids) + len(ids) - 1 for ids in self.distinct]


def prepare(index: int, group: RolloutGroup) -> PreparedGroup:
    """Drop unusable responses and merge equal ones."""
    responses = group.usable
    seen: dict[bytes, int] = {}
    distinct: list[np.ndarray] = []
    which = []
    for response in responses:
        key = response.ids.tobytes()
        if key not in seen:
            seen[key] = len(distinct)
            distinct.append(response.ids)
        which.append(seen[key])
    return PreparedGroup(
        index, group.prompt_ids, responses, distinct, which, group.sampling.temperature
    )


@dataclass(frozen=True)
class Row:
    """Token sequences that share the prompt's positions: one distinct response, or all of them."""

    slot: int
    prompt_ids: np.ndarray
    continuations: list[np.ndarray]

    def tokens(self) -> np.ndarray:
        """Input ids of the row."""
        return np.concatenate([self.prompt_ids, *(ids[:-1] for ids in self.continuations)])

    def positions(self) -> np.ndarray:
        """Position ids: every response continues where the prompt ends."""
        prompt = len(self.prompt_ids)
        own = [np.arange(prompt, prompt + len(ids) - 1) for ids in self.continuations]
        return np.concatenate([np.arange(prompt), *own])

    def blocks(self) -> np.ndarray:
        """The block of each position: 0 the prompt, 1.. the responses."""
        lengths = [len(self.prompt_ids), *(len(c) - 1 for c in self.continuations)]
        return np.repeat(np.arange(len(lengths)), lengths)

    def predictors(self) -> Iterator[np.ndarray]:
        """For each response, the position in the row that predicts each of its tokens."""
        start = len(self.prompt_ids)
        for ids in self.continuations:
            own = np.arange(start, start + len(ids) - 1)
            yield np.concatenate([[len(self.prompt_ids) - 1], own])
            start += len(ids) - 1


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the model together.

    Shape legend: N rows, L positions a row (padded), P prompts (slots), S predicting positions,
    D distinct responses, R usable responses, T response tokens (padded).

    `input_ids_NL`, `position_ids_NL` int64; `mask_N1LL` bool or None (causal); `rows_PK` int64,
    the rows of each prompt, N standing for "none"; `predictors_S` int64, flat positions in N*L
    whose logits are needed, sorted by prompt; `predictors_PM` int64 indexes into S, S standing
    for "none"; `where_DT` int64 indexes into S, `targets_DT` the token predicted there;
    `which_R` the distinct response of each usable one; `temperature_S` float32.
    """

    index_P: Tensor
    input_ids_NL: Tensor
    position_ids_NL: Tensor
    mask_N1LL: Tensor | None
    rows_PK: Tensor
    predictors_S: Tensor
    predictors_PM: Tensor
    where_DT: Tensor
    targets_DT: Tensor
    which_R: Tensor
    temperature_S: Tensor
    responses: ResponseTensors
    tokens: int

    @property
    def prompts(self) -> int:
        """Prompts in the batch."""
        return len(self.index_P)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and padded positions (N, L)."""
        rows, length = self.input_ids_NL.shape
        return rows, length


@dataclass(frozen=True)
class Budget:
    """What one batch may hold: padded positions through the model, and padded logit rows.

    Logits are a vocabulary wide, so where it is large they fill memory long before positions do.
    """

    positions: int
    predictions: int

    def holds(self, load: Load) -> bool:
        """Whether a batch of this load fits."""
        return (
            load.length * load.rows <= self.positions
            and load.predictions * load.prompts <= self.predictions
        )


@dataclass(frozen=True)
class Load:
    """Size of a batch: its longest row, rows, prompts, and a prompt's most predictions."""

    length: int = 0
    rows: int = 0
    prompts: int = 0
    predictions: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            max(self.length, other.length),
            self.rows + other.rows,
            self.prompts + other.prompts,
            max(self.predictions, other.predictions),
        )


def load_of(group: PreparedGroup, share_prefix: bool) -> Load:
    """The load of one prompt. Responses that share the prompt share its last position's logits."""
    tokens = sum(len(ids) for ids in group.distinct)
    count = len(group.distinct)
    if share_prefix:
        return Load(group.shared_length, 1, 1, tokens - count + 1)
    return Load(max(group.row_lengths), count, 1, tokens)


def plan(
    groups: Sequence[PreparedGroup], budget: Budget, share_prefix: bool
) -> list[list[PreparedGroup]]:
    """Split prompts into batches of similar row lengths within a budget.

    Longest first, so that a budget that does not fit in memory fails at once and not after hours.
    A prompt that exceeds the budget by itself is a batch of its own.
    """
    loads = {g.index: load_of(g, share_prefix) for g in groups}
    ordered = sorted(
        groups, key=lambda g: (loads[g.index].length, loads[g.index].rows, g.index), reverse=True
    )
    batches: list[list[PreparedGroup]] = []
    total = Load()
    for group in ordered:
        grown = total + loads[group.index]
        if not batches or not budget.holds(grown):
            batches.append([])
            grown = loads[group.index]
        batches[-1].append(group)
        total = grown
    return batches


def collate(groups: Sequence[PreparedGroup], share_prefix: bool, device: torch.device) -> Batch:
    """Build the tensors of one batch."""
    rows = _rows(groups, share_prefix)
    length = max(len(row.tokens()) for row in rows)
    where, targets, flat, slots = _predictions(rows, length)
    predictors, inverse = np.unique(np.concatenate(where), return_inverse=True)
    owner = np.empty(len(predictors), dtype=np.int64)
    owner[inverse] = np.concatenate(slots)
    temperature = np.array([g.temperature for g in groups], dtype=np.float32)
    ends = np.cumsum([len(w) for w in where])[:-1]
    which = _which(groups)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return Batch(
        index_P=tensor(np.array([g.index for g in groups], dtype=np.int64)),
        input_ids_NL=tensor(_pad([r.tokens() for r in rows], 0, length)),
        position_ids_NL=tensor(_positions(rows, length, share_prefix)),
        mask_N1LL=tensor(_block_mask(rows, length)) if share_prefix else None,
        rows_PK=tensor(_members(np.array([r.slot for r in rows]), len(groups))),
        predictors_S=tensor(predictors),
        predictors_PM=tensor(_members(owner, len(groups))),
        where_DT=tensor(_pad(np.split(inverse, ends), 0)),
        targets_DT=tensor(_pad(targets, 0)),
        which_R=tensor(which),
        temperature_S=tensor(temperature[owner]),
        responses=_response_tensors(groups, device),
        tokens=flat,
    )


def _rows(groups: Sequence[PreparedGroup], share_prefix: bool) -> list[Row]:
    rows = []
    for slot, group in enumerate(groups):
        if share_prefix:
            rows.append(Row(slot, group.prompt_ids, group.distinct))
        else:
            rows.extend(Row(slot, group.prompt_ids, [ids]) for ids in group.distinct)
    return rows


def _positions(rows: Sequence[Row], length: int, share_prefix: bool) -> np.ndarray:
    """Position ids [N, L].

    Without a mask padding counts on, which models recognise as plain causal rows. A shared row is
    longer than any response in it, so its padding is at 0: counting on could leave the table of
    a model with learned positions.
    """
    if not share_prefix:
        return np.tile(np.arange(length), (len(rows), 1))
    return _pad([row.positions() for row in rows], 0, length)


def _predictions(
    rows: Sequence[Row], length: int
) -> tuple[list[np.ndarray], list[np.ndarray], int, list[np.ndarray]]:
    """For each distinct response: flat predicting positions, targets; and the token count."""
    where, targets, slots = [], [], []
    tokens = 0
    for n, row in enumerate(rows):
        tokens += len(row.tokens())
        for ids, positions in zip(row.continuations, row.predictors(), strict=True):
            where.append(n * length + positions)
            targets.append(ids.astype(np.int64))
            slots.append(np.full(len(ids), row.slot))
    return where, targets, tokens, slots


def _which(groups: Sequence[PreparedGroup]) -> np.ndarray:
    """The place of each usable response's distinct sequence in the whole batch."""
    parts, start = [], 0
    for group in groups:
        parts.append(np.array(group.which, dtype=np.int64) + start)
        start += len(group.distinct)
    return np.concatenate(parts)


def _members(owner: np.ndarray, owners: int) -> np.ndarray:
    """List the members of each owner, padded with len(owner) -> int64 [owners, most]."""
    return _pad([np.flatnonzero(owner == o) for o in range(owners)], len(owner))


def _pad(rows: Sequence[np.ndarray], value: int, length: int | None = None) -> np.ndarray:
    """Stack integer rows, padded on the right."""
    out = np.full((len(rows), length or max(map(len, rows))), value, dtype=np.int64)
    for n, row in enumerate(rows):
        out[n, : len(row)] = row
    return out


def _block_mask(rows: Sequence[Row], length: int) -> np.ndarray:
    """Who may look at whom -> bool [N, 1, L, L]; padding sees only itself, so no row is empty."""
    block = np.full((len(rows), length), -1, dtype=np.int64)
    for n, row in enumerate(rows):
        block[n, : len(row.tokens())] = row.blocks()
    same = block[:, :, None] == block[:, None, :]
    visible = (same | (block[:, None, :] == 0)) & (block[:, :, None] >= 0)
    causal = np.tri(length, dtype=bool)
    return np.asarray((visible & causal) | np.eye(length, dtype=bool))[:, None]


def _response_tensors(groups: Sequence[PreparedGroup], device: torch.device) -> ResponseTensors:
    responses = [r for g in groups for r in g.responses]
    longest = max(len(r.ids) for r in responses)
    behaviour = np.zeros((len(responses), longest))
    mask = np.zeros((len(responses), longest), dtype=bool)
    for n, response in enumerate(responses):
        behaviour[n, : len(response.ids)] = response.logprobs
        mask[n, : len(response.ids)] = True
    owners = np.repeat(np.arange(len(groups)), [len(g.responses) for g in groups])
    return ResponseTensors(
        behaviour_RT=torch.from_numpy(behaviour).to(device),
        mask_RT=torch.from_numpy(mask).to(device),
        rewards_R=torch.tensor([r.reward for r in responses], dtype=torch.float64, device=device),
        group_R=torch.from_numpy(owners).to(device),
        groups=len(groups),
    )
