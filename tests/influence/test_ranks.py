"""Several processes with shards of the weights give the scores of one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from cropi.config import ObjectiveConfig
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.ranks import ALONE, Ranks
from cropi.influence.cosines import Influence
from cropi.influence.scorer import Scorer
from cropi.sketches import make_sketch
from support.ranks import run_ranks
from support.tiny_models import FAST, mixed_groups, tiny_model


@dataclass(frozen=True)
class Case:
    """One way to score."""

    name: str
    architecture: str = "qwen2-tied"
    scorer: dict[str, Any] = field(default_factory=dict)
    extractor: dict[str, Any] = field(default_factory=dict)
    sketch: str | None = None
    per_response: bool = False
    own_modules: bool = False


CASES = [Case(name, name) for name in FAST]


def sharded(model: nn.Module) -> nn.Module:
    """The model under FSDP2, a layer at a time."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module)
    fully_shard(model)
    return model


def score(case: Case, ranks: Ranks) -> Influence:
    model = tiny_model(case.architecture)
    if ranks.several:
        model = sharded(model)
    extractor = GradientExtractor(model, ObjectiveConfig(), 100, ranks=ranks, **case.extractor)
    sketch = make_sketch(case.sketch, extractor.shapes, 0) if case.sketch else None
    targets = {"algebra": mixed_groups(5, seed=2), "words": mixed_groups(3, seed=3)}
    scorer = Scorer(extractor, sketch, **case.scorer)
    return scorer.score(mixed_groups(12, seed=1), targets, case.per_response)


def scores_of_ranks() -> dict[str, Influence]:
    return {case.name: score(case, Ranks.joined()) for case in CASES}


@pytest.fixture(scope="module")
def together() -> list[dict[str, Influence]]:
    return run_ranks(2, scores_of_ranks)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_score_as_one(together: list[dict[str, Influence]], case: Case) -> None:
    expected = score(case, ALONE)
    for scores in together:
        estimate = scores[case.name].estimate
        assert estimate.prompt_ids == expected.estimate.prompt_ids
        assert estimate.status == expected.estimate.status
        np.testing.assert_allclose(estimate.norms, expected.estimate.norms, rtol=1e-6)
        for name, cosines in expected.estimate.mean.items():
            np.testing.assert_allclose(estimate.mean[name], cosines, atol=1e-6)
