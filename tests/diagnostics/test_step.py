"""Steps: gradients are those of the bands, weights come back, and short steps go as predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cropi.config import ObjectiveConfig
from cropi.diagnostics import diagnose_step
from cropi.diagnostics.diagnosis_settings import StepSettings
from cropi.diagnostics.step import plan_steps
from cropi.diagnostics.step_experiment import inner, mean_gradients, norm, perturbed
from cropi.errors import InputError
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.logprobs import LogprobReader, read_objectives
from cropi.schema import InfluenceEstimate, RolloutGroup
from support.tiny_models import gradients, mixed_groups, tiny_model


def real_tokens(count: int, seed: int = 0) -> list[RolloutGroup]:
    """Groups without the padding token, whose embedding gets no gradient though it matters."""
    groups = mixed_groups(count, seed)
    for group in groups:
        for ids in (group.prompt_ids, *(r.ids for r in group.responses)):
            ids[ids == 0] = 5
    return groups


def scores(count: int, **cosines: np.ndarray) -> InfluenceEstimate:
    ids = [f"p{n}" for n in range(count)]
    return InfluenceEstimate.from_means(ids, cosines)


def test_bands_are_the_ends_and_the_middle_of_each_ranking() -> None:
    cosine = np.linspace(-1, 1, 30).astype(np.float32)
    plans = plan_steps(scores(30, v=cosine, w=-cosine), ["v", "w"], 4, 3, 5, seed=0)
    named = {(p.band, p.target): p.members.tolist() for p in plans if p.target}
    assert named["top", "v"] == named["bottom", "w"] == [26, 27, 28, 29]
    assert named["bottom", "v"] == named["top", "w"] == [0, 1, 2, 3]
    assert named["middle", "v"] == [13, 14, 15, 16]
    random = [p for p in plans if p.band == "random"]
    assert len(random) == 3
    assert len({tuple(p.members) for p in random}) == 3
    assert all(len(set(p.members)) == 4 for p in random)
    assert sum(p.band == "single" for p in plans) == 5


def test_bands_shrink_where_prompts_are_few() -> None:
    plans = plan_steps(scores(7, v=np.arange(7.0)), ["v"], 64, 1, 30, seed=0)
    chosen = [set(p.members.tolist()) for p in plans if p.target]
    assert [len(c) for c in chosen] == [2, 2, 2]
    assert not chosen[0] & chosen[1]
    assert not chosen[1] & chosen[2]
    assert sum(p.band == "single" for p in plans) == 7


def test_a_bands_gradient_is_the_mean_of_its_prompts() -> None:
    model, groups = tiny_model("qwen2-tied"), mixed_groups(6)
    each = gradients(model, groups)
    bands = [np.array([0, 2, 5]), np.array([2]), np.arange(6)]
    means = mean_gradients(GradientExtractor(model), groups, bands)
    for band, vector in zip(bands, means, strict=True):
        for name, values in vector.items():
            expected = torch.stack([each[b][name] for b in band]).mean(0).flatten()
            torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-5)


def test_moved_weights_come_back_bit_by_bit_even_after_an_error() -> None:
    model = tiny_model("qwen2-tied")
    parameters = GradientExtractor(model).parameters
    before = {name: p.detach().clone() for name, p in parameters.items()}
    direction = {name: torch.randn(p.numel()) for name, p in parameters.items()}

    def fail() -> None:
        with perturbed(parameters, direction, 0.1):
            assert not any(torch.equal(before[name], p) for name, p in parameters.items())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_a_step_along_the_validation_gradient_moves_the_objective_as_predicted() -> None:
    model, groups = tiny_model("qwen2-tied"), mixed_groups(6)
    extractor, config = GradientExtractor(model), ObjectiveConfig()
    (direction,) = mean_gradients(extractor, groups, [np.arange(6)])
    reader = LogprobReader(model)
    before = read_objectives(reader, groups, config).mean()
    eta = 1e-3
    with perturbed(extractor.parameters, direction, eta / norm(direction)):
        change = read_objectives(reader, groups, config).mean() - before
    assert change == pytest.approx(eta * norm(direction), rel=0.05)


def test_inner_products_are_exact_to_the_last_digits() -> None:
    torch.manual_seed(0)
    a = {"x": torch.randn(3_000_000), "y": torch.randn(5)}
    b = {"x": torch.randn(3_000_000), "y": torch.randn(5)}
    expected = sum(float((a[n].double() * b[n].double()).sum()) for n in a)
    assert inner(a, b) == pytest.approx(expected, rel=1e-12)


def test_short_steps_go_as_predicted_and_leave_the_model_as_it_was() -> None:
    model, pool = tiny_model("qwen2-tied"), real_tokens(18)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = diagnose_step(
        pool,
        {"v": real_tokens(5, seed=1), "w": real_tokens(5, seed=2)},
        model,
        settings=StepSettings((1e-6, 3e-7), band_size=4, random_bands=2, single_prompts=5),
    )
    assert report.learning_rates == (3e-7, 1e-6)
    assert report.main == 1e-6
    for target in report.targets:
        top, middle, bottom, random = target.summary(report.main)
        assert (top.band, middle.band, bottom.band) == ("top", "middle", "bottom")
        assert top.ratio == pytest.approx(1, abs=0.01)
        assert top.predicted.mean > 0 > bottom.predicted.mean
        assert random.steps == 2
        assert (target.correlation(report.main) or 0) > 0.999
        assert target.reach(report.learning_rates) == 1e-6
    assert report.as_predicted, report.verdict
    assert report.verdict.startswith("As predicted")
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_bf16_models_steps_are_taken_in_fp32() -> None:
    model = tiny_model("qwen2-tied").bfloat16()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = diagnose_step(
        real_tokens(9),
        {"v": real_tokens(5, seed=1)},
        model,
        settings=StepSettings((1e-6,), band_size=3, random_bands=0, single_prompts=0),
    )
    (target,) = report.targets
    assert target.summary(1e-6)[0].ratio == pytest.approx(1, abs=0.01)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_scores_of_something_else_are_refused() -> None:
    model, pool = tiny_model("qwen2-tied"), mixed_groups(6)
    validation = {"v": mixed_groups(3, seed=1)}
    with pytest.raises(InputError, match="no validation set 'v', only w"):
        diagnose_step(pool, validation, model, scores=scores(6, w=np.zeros(6, np.float32)))
    with pytest.raises(InputError, match="'p6'"):
        diagnose_step(pool, validation, model, scores=scores(9, v=np.zeros(9, np.float32)))


@pytest.mark.parametrize("rates", [(), (0.0,), (1e-5, -1.0)])
def test_a_learning_rate_that_steps_nowhere_is_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="above 0"):
        StepSettings(learning_rates=rates)


def test_rollouts_that_this_policy_cannot_have_sampled_are_named_with_the_verdict() -> None:
    """Log-probs of another model make ratios that say nothing, whatever the steps do."""
    pool, target = real_tokens(12), real_tokens(6, seed=1)
    for group in pool:
        for response in group.responses:
            response.logprobs = response.logprobs - 5
    few = StepSettings(learning_rates=(1e-6,), band_size=2, random_bands=1, single_prompts=1)
    report = diagnose_step(pool, {"v": target}, tiny_model("qwen2-tied"), settings=few)
    assert any(note.startswith("the pool: ") for note in report.notes), report.notes
