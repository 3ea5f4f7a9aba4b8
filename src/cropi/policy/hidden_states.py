"""Hidden states of a policy at prompts, before it answers: of some layers, standardised.

One forward pass over each prompt, without sampling. They tell skills apart that single
gradients do not (see docs/design/selection.md).

Shape legend: P prompts, B prompts of a batch, T tokens, D width of the model, L layers,
F numbers that are kept of a layer, S prompts that the scales are made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import RolloutGroup, derive_seed

Array = NDArray[np.float64]

LAYERS = 4
"""Layers that are read: evenly spaced, the last among them."""
BATCH_TOKENS = 8_192
MOST_DIMENSIONS = 512
"""Wider states are projected at random to this width, which keeps their inner products."""
SCALED_BY = 4_096
"""Prompts, evenly spaced, by whose states all are standardised."""


def prompt_hidden_states(model: Any, groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
    """Hidden states [L, P, F] at each prompt: the mean over its tokens, and the last token's.

    Each number is standardised by the prompts, SCALED_BY of them if there are more, and the whole
    divided by sqrt(F), so that a prompt's squared length is about one. Raises InputError if a state
    is not finite.
    """
    depth = model.config.num_hidden_layers
    layers = sorted({round(depth * (i + 1) / LAYERS) for i in range(LAYERS)} - {0})
    spaced = sorted(set(np.linspace(0, len(groups) - 1, min(SCALED_BY, len(groups))).astype(int)))
    first = [*_batches_of_states(model, groups, spaced, layers)]
    scales = [_Scale.of(states_SF) for states_SF in np.concatenate([s for _, s in first], 1)]
    scaled_LPF = np.empty((len(layers), len(groups), scales[0].width), np.float32)
    rest = sorted({*range(len(groups))} - {*spaced})
    for places, states_LBF in chain(first, _batches_of_states(model, groups, rest, layers)):
        for scale, scaled_PF, states_BF in zip(scales, scaled_LPF, states_LBF, strict=True):
            scaled_PF[places] = scale.scaled(states_BF)
    return scaled_LPF


@dataclass(frozen=True)
class _Scale:
    """How the states of one layer are standardised."""

    mean_F: Array
    deviation_F: Array
    projection_FM: Array | None

    @classmethod
    def of(cls, states_SF: Array) -> _Scale:
        """The scale by which these states have mean 0 and deviation 1."""
        deviation_F, width = states_SF.std(0), states_SF.shape[1]
        projection_FM = None
        if width > MOST_DIMENSIONS:
            # The label is part of the seed: another one would draw other numbers.
            draw = np.random.default_rng(derive_seed(0, "features", width))
            projection_FM = draw.normal(size=(width, MOST_DIMENSIONS)) / MOST_DIMENSIONS**0.5
        deviation_F = np.where(deviation_F > 0, deviation_F, 1.0)
        return cls(states_SF.mean(0), deviation_F, projection_FM)

    @property
    def width(self) -> int:
        return min(len(self.mean_F), MOST_DIMENSIONS)

    def scaled(self, states_PF: Array) -> Array:
        """Standardised, narrowed if they are wide, and divided by sqrt(F)."""
        scaled_PF = (states_PF - self.mean_F) / self.deviation_F
        if self.projection_FM is not None:
            scaled_PF = scaled_PF @ self.projection_FM
        return np.asarray(scaled_PF / len(self.mean_F) ** 0.5)


def _batches_of_states(
    model: Any, groups: Sequence[RolloutGroup], places: Sequence[int], layers: Sequence[int]
) -> Iterator[tuple[list[int], Array]]:
    """Places of prompts, short ones first, in batches, and their states [L, B, 2 D]."""
    for batch in _batches(groups, places):
        states_LBF = np.stack(_states(model, groups, batch, layers), 1)
        _require_finite(states_LBF, [groups[place] for place in batch])
        yield batch, states_LBF


def _require_finite(states_LBF: Array, groups: Sequence[RolloutGroup]) -> None:
    finite_B = np.isfinite(states_LBF).all(axis=(0, 2))
    if not finite_B.all():
        first = groups[int((~finite_B).argmax())].prompt_id
        raise InputError(
            f"the policy's hidden states at prompt {first!r} are not finite; check the "
            "checkpoint's weights, or load it in another dtype (model.dtype)"
        )


def _batches(groups: Sequence[RolloutGroup], places: Sequence[int]) -> Iterator[list[int]]:
    """These places, short prompts first, in batches of about BATCH_TOKENS padded tokens."""
    batch: list[int] = []
    for place in sorted(places, key=lambda place: (len(groups[place].prompt_ids), place)):
        if batch and (len(batch) + 1) * len(groups[place].prompt_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def _states(
    model: Any, groups: Sequence[RolloutGroup], places: Sequence[int], layers: Sequence[int]
) -> list[Array]:
    """Mean and last state side by side, one [L, 2 D] for each place."""
    rows = [torch.as_tensor(groups[place].prompt_ids, dtype=torch.long) for place in places]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    lengths_B = torch.tensor([len(row) for row in rows], device=model.device)
    mask_BT = torch.arange(ids_BT.shape[1], device=model.device) < lengths_B[:, None]
    arguments = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
    output = _backbone(model)(**arguments, output_hidden_states=True)
    states_LBTD = torch.stack([output.hidden_states[layer].double() for layer in layers])
    mean_LBD = (states_LBTD * mask_BT[None, :, :, None]).sum(2) / lengths_B[None, :, None]
    last_LBD = states_LBTD[:, torch.arange(len(rows)), lengths_B - 1]
    both_BLF = torch.cat([mean_LBD, last_LBD], dim=2).transpose(0, 1)
    return [each.cpu().numpy() for each in both_BLF]


def _backbone(model: Any) -> Any:
    """The model without its head: logits of all tokens would take far more memory than states.

    Adapters stay in their layers.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model
