"""The tensors of one batch, and where each prompt and response is in them.

Where prefixes are shared, a prompt is one *row*: the prompt once, then every unique response, each
of which attends to the prompt and to itself. Otherwise each unique response is a row of its own. A
response's last token predicts nothing and is not fed; equal responses of a group are computed once.
A row never mixes prompts and a prompt's rows are neighbours, so the gradient of a prompt is always
a sum over one segment of all positions.

Rows are padded on the right. A causal model never attends to padding, so unshared rows need no mask
at all, and padded positions receive exactly zero gradient.

Tokens that are not the policy's (`Response.loss_mask`) are fed like all others, because later
tokens depend on them, but nothing is predicted at them: the token axis T of log-probs, weights and
the objective holds the policy's tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cropi.gradients.attention import PrefixLayout, pad_rows, prefix_layout
from cropi.gradients.contributions import Segments
from cropi.gradients.objective import ResponseTensors
from cropi.schema import Response, RolloutGroup, Sampling

BEGINNING = 64
"""Tokens of a response that suffice to compare two computations, as a rule."""


@dataclass(frozen=True)
class PreparedGroup:
    """One prompt with its usable responses, of which equal ones are merged.

    `index` is its index in the caller's list, or, where gradients of single responses are wanted,
    that of its first unique response. `unique_ids` and `unique_masks` (bool, the policy's
    tokens) are the different responses in order of first appearance, int32 and bool [T];
    `unique_index[k]` is the one that usable response k equals.
    """

    index: int
    prompt_ids: NDArray[np.int32]
    responses: list[Response]
    unique_ids: list[NDArray[np.int32]]
    unique_masks: list[NDArray[np.bool_]]
    unique_index: list[int]
    temperature: float
    prompt_id: str

    @property
    def shared_length(self) -> int:
        """Positions of the row that holds the prompt once and every unique response."""
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.unique_ids)

    @property
    def row_lengths(self) -> list[int]:
        """Positions of the rows that hold one unique response each."""
        return [len(self.prompt_ids) + len(ids) - 1 for ids in self.unique_ids]

    def part(self, start: int, stop: int) -> PreparedGroup:
        """Neighbouring unique responses alone; `index` is that of the first among all."""
        indices = [k for k, unique in enumerate(self.unique_index) if start <= unique < stop]
        return replace(
            self,
            index=start,
            responses=[self.responses[k] for k in indices],
            unique_ids=self.unique_ids[start:stop],
            unique_masks=self.unique_masks[start:stop],
            unique_index=[self.unique_index[k] - start for k in indices],
        )


def prepare(index: int, group: RolloutGroup, by_response: bool = False) -> PreparedGroup:
    """Drop unusable responses and merge those with equal tokens and masks.

    `by_response` merges them only if log-probs and rewards are equal too, and with them all that
    gives a response its gradient. Nothing depends on what follows a response's last policy token,
    so it is cut off first.
    """
    responses = [_without_masked_tail(response) for response in group.usable]
    first_seen: dict[tuple[bytes, ...], int] = {}
    unique: list[Response] = []
    unique_index = []
    for response in responses:
        key: tuple[bytes, ...] = response.ids.tobytes(), response.sampled.tobytes()
        if by_response:
            behaviour, reward = response.logprobs[response.sampled], float(response.reward)
            key = (*key, behaviour.tobytes(), reward.hex().encode())
        if key not in first_seen:
            first_seen[key] = len(unique)
            unique.append(response)
        unique_index.append(first_seen[key])
    return PreparedGroup(
        index,
        group.prompt_ids,
        responses,
        [response.ids for response in unique],
        [response.sampled for response in unique],
        unique_index,
        group.sampling.temperature,
        group.prompt_id,
    )


def _without_masked_tail(response: Response) -> Response:
    if response.loss_mask is None:
        return response
    end = int(np.flatnonzero(response.loss_mask)[-1]) + 1
    ids, logprobs, mask = response.ids, response.logprobs, response.loss_mask
    return replace(response, ids=ids[:end], logprobs=logprobs[:end], loss_mask=mask[:end])


def shortened_group(group: PreparedGroup) -> PreparedGroup:
    """The beginnings of two responses, different ones that are short and differ in reward.

    They are as long as it takes for two tokens of the policy's each, and a difference.
    """

    def order(pair: tuple[int, int]) -> tuple[bool, bool, int]:
        a, b = (group.responses[k] for k in pair)
        same = group.unique_index[pair[0]] == group.unique_index[pair[1]]
        return same, a.reward == b.reward, len(a.ids) + len(b.ids)

    pair = min(combinations(range(len(group.responses)), 2), key=order)
    responses = [group.responses[k] for k in pair]
    sampling = Sampling(temperature=group.temperature)
    tokens, longest = BEGINNING, max(len(response.ids) for response in responses)
    while True:
        begun = [_beginning(response, tokens) for response in responses]
        short_group = RolloutGroup(group.prompt_id, group.prompt_ids, begun, sampling)
        short = prepare(group.index, short_group)
        if sum(bool(mask[1:].any()) for mask in short.unique_masks) == 2 or tokens >= longest:
            return short
        tokens *= 2


def _beginning(response: Response, tokens: int) -> Response:
    mask = None if response.loss_mask is None else response.loss_mask[:tokens]
    ids, logprobs = response.ids[:tokens], response.logprobs[:tokens]
    return replace(response, ids=ids, logprobs=logprobs, loss_mask=mask)


def response_tensors(groups: Sequence[PreparedGroup], device: torch.device) -> ResponseTensors:
    """What the objective needs of the groups' usable responses, in order: the policy's tokens."""
    responses = [r for g in groups for r in g.responses]
    longest = max(r.tokens for r in responses)
    behaviour = np.zeros((len(responses), longest))
    mask = np.zeros((len(responses), longest), dtype=bool)
    for n, response in enumerate(responses):
        behaviour[n, : response.tokens] = response.logprobs[response.sampled]
        mask[n, : response.tokens] = True
    owners = np.repeat(np.arange(len(groups)), [len(g.responses) for g in groups])
    return ResponseTensors(
        behaviour_RT=torch.from_numpy(behaviour).to(device),
        mask_RT=torch.from_numpy(mask).to(device),
        rewards_R=torch.tensor([r.reward for r in responses], dtype=torch.float64, device=device),
        group_R=torch.from_numpy(owners).to(device),
        groups=len(groups),
    )


@dataclass(frozen=True)
class TokenRow:
    """Responses that share one copy of the prompt's positions: one unique response, or all.

    `masks` are the policy's tokens of each.
    """

    slot: int
    prompt_ids: NDArray[np.int32]
    responses: list[NDArray[np.int32]]
    masks: list[NDArray[np.bool_]]

    def tokens(self) -> np.ndarray:
        """Input ids of the row."""
        return np.concatenate([self.prompt_ids, *(ids[:-1] for ids in self.responses)])

    def positions(self) -> np.ndarray:
        """Position ids: every response continues where the prompt ends."""
        prompt = len(self.prompt_ids)
        continued = [np.arange(prompt, prompt + len(ids) - 1) for ids in self.responses]
        return np.concatenate([np.arange(prompt), *continued])

    def blocks(self) -> np.ndarray:
        """The block of each position: 0 the prompt, 1.. the responses."""
        lengths = [len(self.prompt_ids), *(len(ids) - 1 for ids in self.responses)]
        return np.repeat(np.arange(len(lengths)), lengths)

    def response_positions(self) -> Iterator[np.ndarray]:
        """For each response, its positions in the row: all but its last token's."""
        start = len(self.prompt_ids)
        for ids in self.responses:
            yield np.arange(start, start + len(ids) - 1)
            start += len(ids) - 1

    def predictors(self) -> Iterator[np.ndarray]:
        """For each response, the position in the row that predicts each of its tokens."""
        for positions in self.response_positions():
            yield np.concatenate([[len(self.prompt_ids) - 1], positions])


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that go through the model together.

    Shape legend: N rows, L positions per row (padded), P prompts (or unique responses, where the
    gradients of these are wanted): the slots, S predicting positions, D unique responses, R usable
    responses, T policy tokens of a response (padded).

    `index_P` int64, the prompts' indices into the caller's list. `input_ids_NL`, `position_ids_NL`
    int64; `mask_N1LL` bool or None (causal); `layout` describes the same visibility for prefix
    attention. `slot_N` int64, the prompt of each row; `positions`, each prompt's segment of the N*L
    flat positions. `predictors_S` int64, flat positions whose logits are needed, sorted by prompt;
    `predictions` their segments, `slot_S` their prompts, `temperature_S` float32. `where_DT` int64
    indexes into S, `targets_DT` is the token predicted there; `unique_R` the unique response of
    each usable one. `tokens` counts positions without padding.
    """

    index_P: Tensor
    input_ids_NL: Tensor
    position_ids_NL: Tensor
    mask_N1LL: Tensor | None
    layout: PrefixLayout
    slot_N: Tensor
    positions: Segments
    predictors_S: Tensor
    predictions: Segments
    slot_S: Tensor
    where_DT: Tensor
    targets_DT: Tensor
    unique_R: Tensor
    temperature_S: Tensor
    responses: ResponseTensors
    tokens: int

    @property
    def slots(self) -> int:
        """Gradients that the batch gives: one per prompt, or one per unique response."""
        return len(self.index_P)

    @property
    def prompts(self) -> int:
        """Prompts in the batch."""
        return self.responses.groups

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
    by_response: bool = False,
) -> PromptBatch:
    """Build the tensors of one batch; `masked` with a block mask for shared rows.

    `by_response` gives a gradient to each unique response, whose prompt then cannot be shared.
    """
    assert not (by_response and share_prefix), "responses of a shared row have no own gradients"
    rows = _rows(groups, share_prefix)
    owners, index = list(groups), [group.index for group in groups]
    if by_response:
        owners = [groups[row.slot] for row in rows]
        index = [group.index + n for group in groups for n in range(len(group.unique_ids))]
        rows = [replace(row, slot=n) for n, row in enumerate(rows)]
    length = max(len(row.tokens()) for row in rows)
    where, targets, slots = _predictions(rows, length)
    predictors, inverse = np.unique(np.concatenate(where), return_inverse=True)
    owner = np.empty(len(predictors), dtype=np.int64)
    owner[inverse] = np.concatenate(slots)
    slot = np.array([row.slot for row in rows], dtype=np.int64)
    temperature = np.array([group.temperature for group in owners], dtype=np.float32)
    ends = np.cumsum([len(w) for w in where])[:-1]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return PromptBatch(
        index_P=tensor(np.array(index, dtype=np.int64)),
        input_ids_NL=tensor(pad_rows([r.tokens() for r in rows], 0, length)),
        position_ids_NL=tensor(_position_ids(rows, length, share_prefix)),
        mask_N1LL=tensor(_block_mask(rows, length)) if masked and share_prefix else None,
        layout=_layout(rows, length, device),
        slot_N=tensor(slot),
        positions=Segments.of(np.repeat(slot, length), len(index)),
        predictors_S=tensor(predictors),
        predictions=Segments.of(owner, len(index)),
        slot_S=tensor(owner),
        where_DT=tensor(pad_rows(np.split(inverse, ends), 0)),
        targets_DT=tensor(pad_rows(targets, 0)),
        unique_R=tensor(_unique_index(groups)),
        temperature_S=tensor(temperature[owner]),
        responses=response_tensors(groups, device),
        tokens=sum(len(row.tokens()) for row in rows),
    )


def _rows(groups: Sequence[PreparedGroup], share_prefix: bool) -> list[TokenRow]:
    rows = []
    for slot, group in enumerate(groups):
        if share_prefix:
            rows.append(TokenRow(slot, group.prompt_ids, group.unique_ids, group.unique_masks))
        else:
            pairs = zip(group.unique_ids, group.unique_masks, strict=True)
            rows.extend(TokenRow(slot, group.prompt_ids, [ids], [mask]) for ids, mask in pairs)
    return rows


def _position_ids(rows: Sequence[TokenRow], length: int, share_prefix: bool) -> np.ndarray:
    """Position ids [N, L].

    Without a mask, positions count on through padding, which models recognise as plain
    causal rows. A shared row is longer than any response in it, so its padding is at 0: counting on
    could exceed the table of a model with learned positions.
    """
    if not share_prefix:
        return np.tile(np.arange(length), (len(rows), 1))
    return pad_rows([row.positions() for row in rows], 0, length)


def _predictions(
    rows: Sequence[TokenRow], length: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """For each unique response and policy token: flat predicting position, target and slot."""
    where, targets, slots = [], [], []
    for n, row in enumerate(rows):
        columns = zip(row.responses, row.masks, row.predictors(), strict=True)
        for ids, mask, positions in columns:
            where.append(n * length + positions[mask])
            targets.append(ids[mask].astype(np.int64))
            slots.append(np.full(int(mask.sum()), row.slot))
    return where, targets, slots


def _unique_index(groups: Sequence[PreparedGroup]) -> np.ndarray:
    """The index of each usable response's unique sequence in the whole batch."""
    parts, start = [], 0
    for group in groups:
        parts.append(np.array(group.unique_index, dtype=np.int64) + start)
        start += len(group.unique_ids)
    return np.concatenate(parts)


def _layout(rows: Sequence[TokenRow], length: int, device: torch.device) -> PrefixLayout:
    prompts = [len(row.prompt_ids) for row in rows]
    return prefix_layout(prompts, [[*row.response_positions()] for row in rows], length, device)


def _block_mask(rows: Sequence[TokenRow], length: int) -> np.ndarray:
    """Visibility bool [N, 1, L, L]; padding sees only itself, so that no row is empty."""
    block = np.full((len(rows), length), -1, dtype=np.int64)
    for n, row in enumerate(rows):
        block[n, : len(row.tokens())] = row.blocks()
    same = block[:, :, None] == block[:, None, :]
    visible = (same | (block[:, None, :] == 0)) & (block[:, :, None] >= 0)
    causal = np.tri(length, dtype=bool)
    return np.asarray((visible & causal) | np.eye(length, dtype=bool))[:, None]
