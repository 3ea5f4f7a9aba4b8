"""Are gradients on the device those of the method? Against plain loops in float64 on the CPU.

The oracle is the one of the tests (`tests/support/oracle.py`). For bf16 it sees the weights that
bf16 can hold, so that what is left is the rounding of the computation.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cropi.config import InfluenceConfig
from cropi.influence.setup import make_scorer
from cropi.policy.loading import load_model
from cropi.schema import RolloutGroup
from gpu_parts.place import Figures, Place
from gradient_costs.rollouts import Sizes, synthetic

TESTS = str(Path(__file__).resolve().parents[2] / "tests")
if TESTS not in sys.path:
    sys.path.append(TESTS)

from support.oracle import oracle_gradient  # noqa: E402
from support.tiny_models import mixed_groups, tiny_model  # noqa: E402

ARCHITECTURES = ("qwen2-tied", "qwen3", "llama-untied", "gemma3")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Groups = Sequence[RolloutGroup]


def parity(place: Place) -> Figures:
    """For both precisions the worst model's errors, after each model; what path was taken."""
    models = cases(place)
    worst: dict[str, dict[str, Any]] = {name: {} for name in DTYPES}
    for name, model, groups, target in models:
        for precision, dtype in DTYPES.items():
            narrow = copy.deepcopy(model).to(dtype)
            errors = compared(narrow, place.device, groups, target)
            yield f"{name} {precision}", errors
            for key in ("largest_cosine_error", "largest_norm_error"):
                worst[precision][key] = max(worst[precision].get(key, 0.0), errors[key])
            yield precision, worst[precision]


def cases(place: Place) -> list[tuple[str, Any, Groups, Groups]]:
    """Tiny models of several architectures on mixed rollouts, and pocket with its own log-probs."""
    few = ARCHITECTURES[:1] if place.tiny else ARCHITECTURES
    pool, target = mixed_groups(2 if place.tiny else 8), mixed_groups(2, seed=9)
    listed: list[tuple[str, Any, Groups, Groups]] = [
        (name, tiny_model(name), pool, target) for name in few
    ]
    if not place.tiny:
        pocket, sizes = load_model("pocket", device="cpu"), Sizes(12, 4, 8)
        groups = synthetic(pocket, 10, sizes, seed=0)
        listed.append(("pocket", pocket, groups[:8], groups[8:]))
    return listed


def compared(model: Any, device: str, pool: Groups, target: Groups) -> dict[str, Any]:
    """Largest errors of cosines and (relative) norms, and the path that the self-check allowed."""
    ids = [group.prompt_id for group in pool]
    truth = [flat(oracle_gradient(model, group)) for group in pool]
    direction = torch.stack([flat(oracle_gradient(model, g)) for g in target]).mean(0)
    norms = np.array([float(g.norm()) for g in truth])
    cosines = np.array([float(g @ direction) for g in truth]) / (norms * float(direction.norm()))
    scorer = make_scorer(copy.deepcopy(model).to(device), InfluenceConfig(), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two prompts make no reliable target, and need not
        estimate = scorer.score(pool, {"target": target}).estimate
    assert list(estimate.prompt_ids) == ids
    return {
        "largest_cosine_error": float(np.abs(estimate.mean["target"] - cosines).max()),
        "largest_norm_error": float(np.abs(estimate.norms / norms - 1).max()),
        "path": scorer.extractor.path,
    }


def flat(gradient: Mapping[str, Tensor]) -> Tensor:
    """One float64 vector."""
    whole = torch.cat([part.flatten() for part in gradient.values()])
    assert math.isfinite(float(whole.sum()))
    return whole
