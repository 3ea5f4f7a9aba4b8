"""The tensors of one batch, and where each prompt and response is found again in them.

A prompt is one *row* where its prefix is shared: the prompt once, then every distinct response,
each of which sees the prompt and itself. Otherwise each distinct response is a row of its own. A
response's last token predicts nothing and is not fed; equal responses of a group are computed
once. A row never mixes prompts and a prompt's rows are neighbours, so "the gradient of a prompt"
is always a sum over one segment of all positions.

Rows are padded on the right. A causal model never looks there, so unshared rows need no mask at
all, and padded positions receive exactly zero gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cropi.gradients.batching import PreparedGroup
from cropi.gradients.objective import ResponseTensors

SHORT = 15
"""Response positions up to which padding costs less than another call."""


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
class Segments:
    """Where each prompt's vectors lie in a flat list of vectors: [starts[p], stops[p]).

    Segments follow one another without gaps.
    """

    starts: list[int]
    stops: list[int]

    @classmethod
    def of(cls, owner: np.ndarray, owners: int) -> Segments:
        """The segments of a sorted list of owners."""
        edges = np.searchsorted(owner, np.arange(owners + 1))
        return cls(edges[:-1].tolist(), edges[1:].tolist())

    @property
    def stride(self) -> int | None:
        """Length of every segment where all are equal, else None."""
        lengths = {stop - start for start, stop in zip(self.starts, self.stops, strict=True)}
        return lengths.pop() if len(lengths) == 1 else None

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class ResponseBlock:
    """Responses of similar length, for attention that knows: at most twice as long as each other.

    `responses_DR` int64 flat positions, padded; `keys_DS` what each looks at: its prompt, then
    itself; `real_DS` bool, which of those there are.
    """

    responses_DR: Tensor
    keys_DS: Tensor
    real_DS: Tensor

    @property
    def visible(self) -> Tensor:
        """Which keys each position may look at -> bool [D, 1, R, S].

        Its prompt, and itself up to where it is; padded positions see the prompt too, so that none
        sees nothing.
        """
        own = self.responses_DR.shape[1]
        prefix = self.real_DS.shape[1] - own
        before = torch.ones(own, own + prefix, dtype=torch.bool, device=self.real_DS.device)
        return self.real_DS[:, None, None, :] & before.tril_(prefix)


@dataclass(frozen=True)
class Layout:
    """Where prompts and responses lie among the flat positions, for attention that knows.

    `prompts_NP` int64 flat positions of each row's prompt, padded; `blocks` the responses that have
    positions of their own; `source_T` where each position's result stands among the prompts'
    [N*P], then each block's [D*R].
    """

    prompts_NP: Tensor
    blocks: list[ResponseBlock]
    source_T: Tensor
    positions: int


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the model together.

    Shape legend: N rows, L positions a row (padded), P prompts (slots), S predicting positions,
    D distinct responses, R usable responses, T response tokens (padded).

    `input_ids_NL`, `position_ids_NL` int64; `mask_N1LL` bool or None (causal); `layout` says the
    same for attention of our own; `slot_N` int64, the
    prompt of each row; `positions`, each prompt's segment of the N*L flat positions; `predictors_S`
    int64, flat positions whose logits are needed, sorted by prompt, and `predictions` their
    segments, `slot_S` their prompts; `where_DT` int64 indexes into S, `targets_DT` the token
    predicted there; `which_R` the distinct response of each usable one; `temperature_S` float32.
    """

    index_P: Tensor
    input_ids_NL: Tensor
    position_ids_NL: Tensor
    mask_N1LL: Tensor | None
    layout: Layout
    slot_N: Tensor
    positions: Segments
    predictors_S: Tensor
    predictions: Segments
    slot_S: Tensor
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


def collate(
    groups: Sequence[PreparedGroup],
    share_prefix: bool,
    device: torch.device,
    masked: bool = False,
) -> Batch:
    """Build the tensors of one batch; `masked` with a block mask for shared rows."""
    rows = _rows(groups, share_prefix)
    length = max(len(row.tokens()) for row in rows)
    where, targets, flat, slots = _predictions(rows, length)
    predictors, inverse = np.unique(np.concatenate(where), return_inverse=True)
    owner = np.empty(len(predictors), dtype=np.int64)
    owner[inverse] = np.concatenate(slots)
    slot = np.array([row.slot for row in rows], dtype=np.int64)
    temperature = np.array([g.temperature for g in groups], dtype=np.float32)
    ends = np.cumsum([len(w) for w in where])[:-1]
    which = _which(groups)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return Batch(
        index_P=tensor(np.array([g.index for g in groups], dtype=np.int64)),
        input_ids_NL=tensor(_pad([r.tokens() for r in rows], 0, length)),
        position_ids_NL=tensor(_positions(rows, length, share_prefix)),
        mask_N1LL=tensor(_block_mask(rows, length)) if masked and share_prefix else None,
        layout=_layout(rows, length, device),
        slot_N=tensor(slot),
        positions=Segments.of(np.repeat(slot, length), len(groups)),
        predictors_S=tensor(predictors),
        predictions=Segments.of(owner, len(groups)),
        slot_S=tensor(owner),
        where_DT=tensor(_pad(np.split(inverse, ends), 0)),
        targets_DT=tensor(_pad(targets, 0)),
        which_R=tensor(which),
        temperature_S=tensor(temperature[owner]),
        responses=response_tensors(groups, device),
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


def _pad(rows: Sequence[np.ndarray], value: int, length: int | None = None) -> np.ndarray:
    """Stack integer rows, padded on the right."""
    out = np.full((len(rows), length or max(map(len, rows))), value, dtype=np.int64)
    for n, row in enumerate(rows):
        out[n, : len(row)] = row
    return out


def _layout(rows: Sequence[Row], length: int, device: torch.device) -> Layout:
    """Where each row's prompt and responses are. Padding looks at the first position of all."""
    prompts_NP = _pad([np.arange(len(r.prompt_ids)) + n * length for n, r in enumerate(rows)], -1)
    blocks, results = [], [prompts_NP.ravel()]
    for members in _similar(rows):
        own = [positions + n * length for n, positions in members]
        responses_DR = _pad(own, -1)
        keys_DS = np.concatenate([prompts_NP[[n for n, _ in members]], responses_DR], 1)
        arrays = (np.maximum(responses_DR, 0), np.maximum(keys_DS, 0), keys_DS >= 0)
        blocks.append(ResponseBlock(*(torch.from_numpy(a).to(device) for a in arrays)))
        results.append(responses_DR.ravel())
    places = np.concatenate(results)
    source_T = np.zeros(len(rows) * length, dtype=np.int64)
    source_T[places[places >= 0]] = np.flatnonzero(places >= 0)
    prompts = torch.from_numpy(np.maximum(prompts_NP, 0)).to(device)
    return Layout(prompts, blocks, torch.from_numpy(source_T).to(device), length)


def _similar(rows: Sequence[Row]) -> list[list[tuple[int, np.ndarray]]]:
    """(row, positions within it) of responses with positions of their own, by doubling length.

    One runaway response would otherwise pad all others to its length.
    """
    found: dict[int, list[tuple[int, np.ndarray]]] = {}
    for n, row in enumerate(rows):
        for positions in row.predictors():
            if len(positions) > 1:
                doublings = max(SHORT, len(positions) - 1).bit_length()
                found.setdefault(doublings, []).append((n, positions[1:]))
    return [found[doublings] for doublings in sorted(found)]


def _block_mask(rows: Sequence[Row], length: int) -> np.ndarray:
    """Who may look at whom -> bool [N, 1, L, L]; padding sees only itself, so no row is empty."""
    block = np.full((len(rows), length), -1, dtype=np.int64)
    for n, row in enumerate(rows):
        block[n, : len(row.tokens())] = row.blocks()
    same = block[:, :, None] == block[:, None, :]
    visible = (same | (block[:, None, :] == 0)) & (block[:, :, None] >= 0)
    causal = np.tri(length, dtype=bool)
    return np.asarray((visible & causal) | np.eye(length, dtype=bool))[:, None]


def response_tensors(groups: Sequence[PreparedGroup], device: torch.device) -> ResponseTensors:
    """What the objective needs of the groups' usable responses, in order."""
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
