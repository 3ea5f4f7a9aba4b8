"""Whether a folder holds a policy that could have been trained from another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cropi.errors import InputError
from cropi.policy.checkpoint_source import locate
from cropi.text import shown
from cropi.training.divergence import LARGEST_WEIGHT
from cropi.training.stage import StagePlan

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
"""Keys of a model's config by which two models are of one shape."""


def require_trained(folder: Path, plan: StagePlan) -> None:
    """Raise InputError unless `folder` holds a policy of the shape of the stage's start.

    The sentence begins with what is there instead. Weights have to be finite; those of formats
    other than safetensors are not looked at.
    """
    try:
        locate(str(folder), None)
    except InputError as error:
        raise InputError(f"no policy ({error})") from error
    start = locate(plan.start, plan.model.revision)
    _require_weights(folder)
    if not start.hub and start.gguf is None:
        _require_same_shape(folder, Path(start.location))


def _require_weights(folder: Path) -> None:
    for weights in _opened(folder):
        for name in weights.keys():  # noqa: SIM118  (it is no mapping)
            weight = weights.get_tensor(name)
            if not weight.is_floating_point() or not weight.numel():
                continue
            largest = float(weight.abs().max())
            if not largest <= LARGEST_WEIGHT:  # NaN too
                raise InputError(
                    f"the weight {name}, whose largest value is {largest:.3g}; a lower learning "
                    "rate may keep training from diverging"
                )


def _require_same_shape(folder: Path, start: Path) -> None:
    left, given = _config(folder), _config(start)
    for key in SHAPE:
        if key in left and key in given and left[key] != given[key]:
            raise InputError(
                f"a model whose {key} is {shown(left[key], 60)}, where the policy to train has "
                f"{shown(given[key], 60)}; save the policy that was trained"
            )
    shapes = _shapes(start)
    for name, shape in _shapes(folder).items():
        if shapes.get(name, shape) != shape:
            raise InputError(
                f"the weight {name} of shape {shape}, where the policy to train has "
                f"{shapes[name]}; save the policy that was trained"
            )


def _config(folder: Path) -> dict[str, Any]:
    """A model's config; empty where there is none, as beside an adapter."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"a config.json that is no JSON ({error}); save it again") from error
    return config if isinstance(config, dict) else {}


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a folder's safetensors, none of which are read."""
    return {
        name: list(weights.get_slice(name).get_shape())
        for weights in _opened(folder)
        for name in weights.keys()  # noqa: SIM118
    }


def _opened(folder: Path) -> Iterator[Any]:
    """The safetensors in a folder, one after the other."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                yield weights
        except SafetensorError as error:
            raise InputError(f"{file.name}, which cannot be read ({error})") from error
