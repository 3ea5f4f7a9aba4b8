"""Parts of single responses add up to a prompt's cosine, and leaving one out gives its error."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cropi.config import InfluenceConfig, ObjectiveConfig
from cropi.errors import InputError
from cropi.estimation.noise import jackknife_error
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.preconditioner import Preconditioner
from cropi.influence.scorer import Scorer
from cropi.influence.setup import score
from cropi.policy.optimizer_state import SecondMoments
from cropi.schema import SCORED, InfluenceEstimate, RolloutGroup
from cropi.selection import fuse
from cropi.sketches import SparseSketch
from cropi.sketches.settings import SketchChoice
from cropi.store.tables import read_scores, require_set_names, write_scores
from support.oracle import flatten, oracle_gradient, oracle_response_gradients
from support.tiny_models import changed, mixed_groups, tiny_model

Targets = dict[str, list[RolloutGroup]]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("qwen2-tied")


@pytest.fixture(scope="module")
def pool() -> list[RolloutGroup]:
    """Equal responses, one that was not judged, one masked throughout, and a dull prompt."""
    groups = mixed_groups(8, seed=11)
    first = groups[0].responses[0]
    groups[0].responses.append(dataclasses.replace(first))
    lost = dataclasses.replace(first, reward=float("nan"), reward_status="timeout")
    groups[2].responses.insert(1, lost)
    silent = np.zeros(len(first.ids), np.uint8)
    groups[3].responses.insert(0, dataclasses.replace(first, loss_mask=silent))
    groups[5] = changed(groups[5], lambda r: dataclasses.replace(r, reward=0.5))
    return groups


@pytest.fixture(scope="module")
def targets() -> Targets:
    return {"algebra": mixed_groups(5, seed=2), "words": mixed_groups(3, seed=3)}


@pytest.fixture(scope="module")
def estimate(model: nn.Module, pool: list[RolloutGroup], targets: Targets) -> InfluenceEstimate:
    return score(model, pool, targets, per_response=True).estimate


def direction(model: nn.Module, groups: list[RolloutGroup]) -> Tensor:
    mean = torch.stack([flatten(oracle_gradient(model, group)) for group in groups]).mean(0)
    return mean / mean.norm()


def test_parts_equal_the_oracles(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, estimate: InfluenceEstimate
) -> None:
    for name, groups in targets.items():
        towards = direction(model, groups)
        for group, parts in zip(pool, estimate.responses[name], strict=True):
            if not group.informative:
                assert len(parts) == 0
                continue
            terms = torch.stack([flatten(t) for t in oracle_response_gradients(model, group)])
            expected = (terms @ towards / terms.sum(0).norm()).tolist()
            is_usable = [response.usable for response in group.responses]
            assert np.isnan(parts).tolist() == [not usable for usable in is_usable]
            assert parts[is_usable].tolist() == pytest.approx(expected, abs=1e-5)


SKETCHES = {"sparse": {"dim": 512}, "kronecker": {"dim": 512}, "adaptive": {"dim": 256}}


@pytest.mark.parametrize("sketch", [None, *SKETCHES])
@pytest.mark.parametrize("target", ["mean", "unit_mean"])
def test_parts_add_up_to_cosines_which_change_by_no_bit(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, sketch: str | None, target: str
) -> None:
    objective = ObjectiveConfig(normalisation="token", self_normalised=True)
    settings = InfluenceConfig(objective=objective, target=target)
    if sketch:
        choice = SketchChoice.of(sketch, **SKETCHES[sketch])
        settings = settings.model_copy(update={"sketch": choice})
    plain = score(model, pool, targets, settings)
    detailed = score(model, pool, targets, settings, per_response=True)
    assert detailed.tokens > plain.tokens
    for name in targets:
        mean, parts = detailed.estimate.mean[name], detailed.estimate.responses[name]
        assert np.array_equal(mean, plain.estimate.mean[name], equal_nan=True)
        sums = [float(np.nansum(p)) if len(p) else np.nan for p in parts]
        assert sums == pytest.approx(mean.tolist(), abs=1e-5, nan_ok=True)
    assert plain.estimate.responses == {}


VARIANTS = {
    "checkpointed": {"gradient_checkpointing": True},
    "bf16 directions": {"target_memory": "bf16"},
    "offloaded directions": {"target_memory": "offload"},
    "single prompts per batch": {"batch_tokens": 1},
    "some parameters": {"parameters": ["model.layers.1.*"]},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_parts_add_up_however_gradients_are_computed(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, variant: dict
) -> None:
    estimate = score(model, pool, targets, InfluenceConfig(**variant), per_response=True).estimate
    for name, mean in estimate.mean.items():
        sums = [float(np.nansum(p)) if len(p) else np.nan for p in estimate.responses[name]]
        assert sums == pytest.approx(mean.tolist(), abs=1e-5, nan_ok=True)


def test_parts_follow_adams_view_of_a_target(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets
) -> None:
    generator = torch.Generator().manual_seed(0)
    extractor = GradientExtractor(model)
    squares = {n: torch.rand(s, generator=generator) for n, s in extractor.shapes.items()}
    adam = Preconditioner(SecondMoments(squares, dict.fromkeys(squares, 9), 0.999, 1e-8))
    for sketch in (None, SparseSketch(extractor.shapes, 0, 1.0, 256)):
        scorer = Scorer(extractor, sketch, preconditioner=adam)
        estimate = scorer.score(pool, targets, per_response=True).estimate
        for name, mean in estimate.mean.items():
            sums = [float(np.nansum(p)) if len(p) else np.nan for p in estimate.responses[name]]
            assert sums == pytest.approx(mean.tolist(), abs=1e-5, nan_ok=True)


def test_bf16_parts_are_close_to_fp32_ones(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets
) -> None:
    coarse = copy.deepcopy(model).bfloat16()
    fine = copy.deepcopy(coarse).float()
    one, other = (score(m, pool, targets, per_response=True).estimate for m in (coarse, fine))
    for name in targets:
        for parts, expected in zip(one.responses[name], other.responses[name], strict=True):
            assert parts == pytest.approx(expected, abs=0.03, nan_ok=True)


def test_errors_are_the_jackknife_of_the_oracles_cosines(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, estimate: InfluenceEstimate
) -> None:
    for name, groups in targets.items():
        towards = direction(model, groups)
        for group, error in zip(pool, estimate.standard_error[name].tolist(), strict=True):
            if not group.informative:
                assert np.isnan(error)
                continue
            terms = torch.stack([flatten(t) for t in oracle_response_gradients(model, group)])
            left = [terms.sum(0) - term for term in terms]
            cosines = [float(rest @ towards / rest.norm()) for rest in left]
            count = len(cosines)
            spread = sum((c - sum(cosines) / count) ** 2 for c in cosines)
            assert error == pytest.approx(np.sqrt((count - 1) / count * spread), abs=1e-5)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, (7, 2))
    without = (values.sum(0) - values) / 6
    assert jackknife_error(without) == pytest.approx(values.std(0, ddof=1) / np.sqrt(7))
    assert jackknife_error(np.array([[1.0], [-1.0]] * 20)).tolist() == [1.0]


def test_sketched_errors_come_close_to_exact_ones(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, estimate: InfluenceEstimate
) -> None:
    settings = InfluenceConfig(sketch=SketchChoice.of("sparse", ratio=1.0, dim=1 << 15))
    sketched = score(model, pool, targets, settings, per_response=True).estimate
    for name in targets:
        exact = estimate.standard_error[name].tolist()
        assert sketched.standard_error[name].tolist() == pytest.approx(exact, abs=0.03, nan_ok=True)


def test_a_prompt_out_of_range_has_no_parts_and_changes_no_other(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, estimate: InfluenceEstimate
) -> None:
    wild = changed(pool[1], lambda r: dataclasses.replace(r, logprobs=r.logprobs - 9999))
    other = score(model, [pool[0], wild, *pool[2:]], targets, per_response=True).estimate
    assert other.status[1] != SCORED
    for name in targets:
        assert len(other.responses[name][1]) == 0
        assert np.isnan(other.standard_error[name][1])
        for index in (0, 2, 7):
            before, after = estimate.responses[name][index], other.responses[name][index]
            assert after == pytest.approx(before, abs=1e-6, nan_ok=True)


def test_parts_and_errors_survive_the_file(estimate: InfluenceEstimate, tmp_path: Path) -> None:
    write_scores(tmp_path / "s.parquet", estimate)
    back = read_scores(tmp_path / "s.parquet")
    assert list(back.mean) == list(estimate.mean)
    for name, parts in estimate.responses.items():
        for one, other in zip(parts, back.responses[name], strict=True):
            assert np.array_equal(one, other, equal_nan=True)
        errors = (estimate.standard_error[name], back.standard_error[name])
        assert np.array_equal(*errors, equal_nan=True)
    assert len(back.scored().responses["words"]) == back.status.count(SCORED)


def test_a_set_may_not_be_called_like_the_parts_of_another() -> None:
    require_set_names(["words_responses", "algebra"])
    with pytest.raises(InputError, match="'words_responses'"):
        require_set_names(["words", "words_responses"])


def test_own_errors_do_not_move_the_noise_floor(
    model: nn.Module, pool: list[RolloutGroup], targets: Targets, estimate: InfluenceEstimate
) -> None:
    plain = score(model, pool, targets).estimate
    for floor in (0.5, 3.0):
        one, other = (fuse(e, 6, noise_floor=floor) for e in (plain, estimate))
        assert one.prompt_ids == other.prompt_ids
