"""What a policy makes of prompts before it answers: hidden states of some layers, as features.

One forward pass over each prompt, without sampling. The policy's own representation tells skills
apart that single gradients do not (see docs/design/selection.md).

Shape legend: P prompts, B prompts of a batch, T tokens, D width of the model, L layers, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.schema import RolloutGroup, derive_seed

LAYERS = 4
"""Layers that are read: evenly spaced, the last among them."""
BATCH_TOKENS = 8_192
MOST_FEATURES = 512
"""Wider features are projected at random to this width, which keeps their inner products."""


def prompt_features(model: Any, groups: Sequence[RolloutGroup]) -> NDArray[np.float64]:
    """Features [L, P, F] of each prompt: the mean over its tokens and the last token's state.

    Each feature is standardised over the prompts, and the whole divided by sqrt(F), so that a
    prompt's squared length is about one. Raises InputError if a state is not finite.
    """
    depth = model.config.num_hidden_layers
    layers = sorted({round(depth * (i + 1) / LAYERS) for i in range(LAYERS)} - {0})
    states = [np.empty((0, 0))] * len(groups)
    for places in _batches(groups):
        for place, state in zip(places, _states(model, groups, places, layers), strict=True):
            states[place] = state
    states_LPF = np.stack(states, 1)
    _require_finite(states_LPF, groups)
    return np.stack([_standardised(states_PF) for states_PF in states_LPF])


def _require_finite(states_LPF: NDArray[np.float64], groups: Sequence[RolloutGroup]) -> None:
    wrong_P = ~np.isfinite(states_LPF).all(axis=(0, 2))
    if wrong_P.any():
        first = groups[int(wrong_P.argmax())].prompt_id
        raise InputError(
            f"the policy's hidden states at {int(wrong_P.sum())} of {len(groups)} prompts are not "
            f"finite, first at {first!r}; check the checkpoint's weights, or load it in another "
            "dtype (model.dtype)"
        )


def _batches(groups: Sequence[RolloutGroup]) -> Iterator[list[int]]:
    """Places of prompts, short ones first, in batches of about BATCH_TOKENS padded tokens."""
    order = sorted(range(len(groups)), key=lambda place: (len(groups[place].prompt_ids), place))
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * len(groups[place].prompt_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def _states(
    model: Any, groups: Sequence[RolloutGroup], places: Sequence[int], layers: Sequence[int]
) -> list[NDArray[np.float64]]:
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


def _standardised(states_PF: NDArray[np.float64]) -> NDArray[np.float64]:
    deviations_F = states_PF.std(0)
    features_PF = (states_PF - states_PF.mean(0)) / np.where(deviations_F > 0, deviations_F, 1.0)
    width = features_PF.shape[1]
    if width > MOST_FEATURES:
        draw = np.random.default_rng(derive_seed(0, "features", width))
        projection_FM = draw.normal(size=(width, MOST_FEATURES)) / MOST_FEATURES**0.5
        features_PF = features_PF @ projection_FM
    return np.asarray(features_PF / width**0.5)
