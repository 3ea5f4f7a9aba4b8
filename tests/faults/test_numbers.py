"""Numbers out of range: used rightly, refused by name, or counted; never a wrong cosine."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import cropi
from cropi.config import ObjectiveConfig, load_config
from cropi.errors import InputError
from cropi.gradients.bounds import MAX_LOG_RATIO, group_weights
from cropi.gradients.collation import prepare, response_tensors
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.objective import advantages, objective
from cropi.influence.features import FeatureStore, score_features
from cropi.influence.features.extraction import write_features
from cropi.influence.scorer import Scorer
from cropi.rollouts import read_rollouts, rollout_statistics, write_rollouts
from cropi.rollouts.staleness import measure_staleness
from cropi.schema import (
    LEFT_OUT,
    RATIO_OUT_OF_RANGE,
    REWARDS_OUT_OF_RANGE,
    SCORED,
    ZERO_GRADIENT,
    InfluenceEstimate,
    PolicyIdentity,
    Response,
    RolloutGroup,
    Sampling,
)
from cropi.selection import fuse
from cropi.sketches import make_sketch
from cropi.training.grpo_keys import check_grpo_settings
from support.oracle import flatten, oracle_gradient
from support.tiny_models import OPTIONS, method_of, mixed_groups, tiny_model

TINIEST, LARGEST = -float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)
SERVERS_INFINITY = (-9999.0, -1e30, -math.inf)
QUICK = settings(
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("qwen2-tied")


@pytest.fixture(scope="module")
def pool() -> list[RolloutGroup]:
    return mixed_groups(7, seed=1)


@pytest.fixture(scope="module")
def target() -> list[RolloutGroup]:
    return mixed_groups(5, seed=2)


@pytest.fixture(scope="module")
def plain(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> InfluenceEstimate:
    return scorer(model).score(pool, {"v": target}).estimate


def scorer(model: nn.Module, sketch: str | None = None, **options: Any) -> Scorer:
    extractor = GradientExtractor(model, ObjectiveConfig(**options), 100)
    made = make_sketch(sketch, extractor.shapes, 0, dim=256) if sketch else None
    return Scorer(extractor, made)


def with_logprob(groups: list[RolloutGroup], place: int, value: float) -> list[RolloutGroup]:
    """A copy in which the first token of one prompt's first response has this log-prob."""
    changed = copy.deepcopy(groups)
    changed[place].responses[0].logprobs[0] = value
    return changed


def with_rewards(groups: list[RolloutGroup], place: int, factor: float) -> list[RolloutGroup]:
    """A copy in which one prompt's rewards are multiplied."""
    changed = copy.deepcopy(groups)
    for response in changed[place].responses:
        response.reward *= factor
    return changed


def test_the_sum_of_equal_responses_cannot_hide_an_infinite_ratio(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    wild = copy.deepcopy(pool)
    first = wild[2].responses[0]
    wild[2].responses.append(dataclasses.replace(first, reward=first.reward + 1))
    wild = with_logprob(wild, 2, -9999.0)
    estimate = scorer(model).score(wild, {"v": target}).estimate
    assert estimate.status[2] == RATIO_OUT_OF_RANGE
    assert np.isnan(estimate.mean["v"][2])


@pytest.mark.parametrize("value", [*SERVERS_INFINITY, -55.0, -120.0, -700.0, -720.0])
@pytest.mark.parametrize("sketch", [None, "windowed"])
def test_a_wild_prompt_is_named_and_changes_no_other_prompts_number(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    value: float,
    sketch: str | None,
) -> None:
    expected = scorer(model, sketch).score(pool, {"v": target}).estimate
    influence = scorer(model, sketch).score(with_logprob(pool, 3, value), {"v": target})
    estimate = influence.estimate
    assert estimate.status == [RATIO_OUT_OF_RANGE if n == 3 else SCORED for n in range(len(pool))]
    assert estimate.skipped == {RATIO_OUT_OF_RANGE: 1}
    assert any(RATIO_OUT_OF_RANGE in note and "p3" in note for note in influence.notes)
    others = estimate.is_scored
    for ours, reference in (
        (estimate.mean["v"], expected.mean["v"]),
        (estimate.norms, expected.norms),
    ):
        assert ours[others].tobytes() == reference[others].tobytes()
        assert np.isnan(ours[3])


@pytest.mark.parametrize("value", SERVERS_INFINITY)
@pytest.mark.parametrize("kind", ["mean", "unit_mean"])
def test_a_wild_prompt_is_left_out_of_a_target(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    value: float,
    kind: Any,
) -> None:
    without = Scorer(GradientExtractor(model), target=kind)
    expected = without.score(pool, {"v": [g for n, g in enumerate(target) if n != 1]})
    wild = Scorer(GradientExtractor(model), target=kind)
    influence = wild.score(pool, {"v": with_logprob(target, 1, value)})
    assert influence.estimate.mean["v"] == pytest.approx(expected.estimate.mean["v"], abs=1e-6)
    assert influence.reliability["v"].informative == len(target) - 1
    assert any("validation set v: 1 prompt is left out" in note for note in influence.notes)


@pytest.mark.parametrize("what", ["pool", "target"])
def test_nothing_but_wild_prompts_is_refused_by_name(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup], what: str
) -> None:
    groups = {"pool": pool, "target": target}
    for place in range(len(groups[what])):
        groups[what] = with_logprob(groups[what], place, -9999.0)
    with pytest.raises(InputError, match=r"no prompt has a usable gradient: .*p0, p1") as caught:
        scorer(model).score(groups["pool"], {"v": groups["target"]})
    assert "\n" not in str(caught.value)


def test_a_policy_that_left_every_response_behind_is_out_of_range(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    cold = copy.deepcopy(pool)
    cold[0].sampling = dataclasses.replace(cold[0].sampling, temperature=1e-3)
    estimate = scorer(model).score(cold, {"v": target}).estimate
    assert estimate.status[0] == RATIO_OUT_OF_RANGE
    assert set(estimate.status[1:]) == {SCORED}


@pytest.mark.parametrize("name", ["opt", "qwen2-tied"])
def test_the_slow_path_leaves_out_the_same_prompts(
    name: str, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    extractor = GradientExtractor(tiny_model(name))
    with pytest.MonkeyPatch.context() as patch:
        if name != "opt":
            patch.setattr(extractor, "_choose_path", lambda *_: "autograd")
        with np.errstate(all="raise"):
            estimate = Scorer(extractor).score(with_logprob(pool, 3, -1e30), {"v": target}).estimate
    assert extractor.path == "autograd"
    assert estimate.status == [RATIO_OUT_OF_RANGE if n == 3 else SCORED for n in range(len(pool))]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("value", [-9999.0, -1e30, -math.inf, -400.0])
def test_weights_are_finite_under_every_objective(
    pool: list[RolloutGroup], options: dict[str, Any], value: float
) -> None:
    prepared = [prepare(n, group) for n, group in enumerate(with_logprob(pool, 3, value))]
    plain = [prepare(n, group) for n, group in enumerate(pool)]
    config = ObjectiveConfig(**options)
    responses, before = (response_tensors(p, torch.device("cpu")) for p in (prepared, plain))
    logp_RT = torch.full(responses.mask_RT.shape, -4.0, dtype=torch.float64)
    bounded, expected = (group_weights(logp_RT, r, config) for r in (responses, before))
    assert bounded.weights_RT.isfinite().all()
    assert bounded.ratios_G4.isfinite().all()
    others = responses.group_R != 3
    assert torch.equal(bounded.weights_RT[others], expected.weights_RT[others])
    uses_ratios = config.ratio != "none" or config.self_normalised
    assert bounded.code_G.tolist() == [int(uses_ratios and n == 3) for n in range(len(pool))]


def test_the_bound_on_ratios_is_where_the_page_says(pool: list[RolloutGroup]) -> None:
    responses = response_tensors([prepare(0, pool[0])], torch.device("cpu"))
    for excess, code in ((-0.01, 0), (0.01, 1)):
        logp_RT = responses.behaviour_RT.clone()
        logp_RT[0, 0] += MAX_LOG_RATIO + excess
        assert group_weights(logp_RT, responses, ObjectiveConfig()).code_G.tolist() == [code]


@QUICK
@given(data=st.data(), sketched=st.booleans(), ratio=st.sampled_from(["token", "sequence", "none"]))
def test_any_finite_numbers_give_finite_cosines_or_a_named_refusal(
    model: nn.Module, data: st.DataObject, sketched: bool, ratio: str
) -> None:
    logprobs = st.floats(TINIEST, 0, width=32) | st.floats(-20, 0, width=32)
    rewards = st.floats(-LARGEST, LARGEST) | st.floats(-1, 1) | st.sampled_from([0.0, 1.0, 1e-300])
    pool, target = mixed_groups(3, seed=3), mixed_groups(2, seed=4)
    for group in (*pool, *target):
        for response in group.responses:
            response.reward = data.draw(rewards)
            response.logprobs[data.draw(st.integers(0, len(response.ids) - 1))] = data.draw(
                logprobs
            )
    refusals = []
    one = scorer(model, "windowed" if sketched else None, ratio=ratio)
    try:
        estimate = one.score(pool, {"v": target}).estimate
    except InputError as error:
        refusals.append(str(error))
    if refusals:
        assert "\n" not in refusals[0]
        names = ("p0", "p1", "p2", "validation set v", "the pool")
        assert any(name in refusals[0] for name in names)
        return
    scored = estimate.is_scored
    assert np.isfinite(estimate.mean["v"][scored]).all()
    assert (np.abs(estimate.mean["v"][scored]) <= 1).all()
    assert np.isfinite(estimate.norms[scored]).all()
    assert (estimate.norms[scored] > 0).all()
    assert np.isnan(estimate.mean["v"][~scored]).all()


@QUICK
@given(data=st.data(), option=st.sampled_from(sorted(OPTIONS)))
def test_any_finite_numbers_give_the_oracles_cosines_or_a_named_refusal(
    model: nn.Module, data: st.DataObject, option: str
) -> None:
    pool, target = mixed_groups(3, seed=5, longest=3), mixed_groups(2, seed=6, longest=3)
    logprobs = st.floats(-33, 0, width=32) | st.floats(-6, 0, width=32) | st.just(-9999.0)
    rewards = st.sampled_from([0.0, 0.3, 0.1 + 0.2, 1.0]) | st.floats(-1e9, 1e9) | st.floats(-1, 1)
    for group in (*pool, *target):
        for response in group.responses:
            response.reward = data.draw(rewards)
            response.logprobs[0] = data.draw(logprobs)
    scoring = scorer(model, **OPTIONS[option])
    refusals = []
    try:
        estimate = scoring.score(pool, {"v": target}).estimate
        used = scoring.score(target, {"v": target}).estimate.is_scored
    except InputError as error:
        refusals.append(str(error))
    if refusals:
        assert re.search(r"p[0-2]\b|validation set v|the pool", refusals[0])
        return
    counted = [group for group, counts in zip(target, used, strict=True) if counts]
    method = method_of(OPTIONS[option])
    direction = torch.stack([flatten(oracle_gradient(model, g, method)) for g in counted]).sum(0)
    for place in np.flatnonzero(estimate.is_scored):
        gradient = flatten(oracle_gradient(model, pool[place], method))
        expected = float(torch.cosine_similarity(gradient, direction, dim=0, eps=0.0))
        assert float(estimate.mean["v"][place]) == pytest.approx(expected, abs=1e-5)


@QUICK
@given(
    value=st.floats(TINIEST, 0, width=32),
    place=st.integers(0, 6),
    rewards=st.lists(st.floats(-1e9, 1e9), min_size=5, max_size=5),
)
def test_one_prompt_never_changes_anothers_number(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    plain: InfluenceEstimate,
    value: float,
    place: int,
    rewards: list[float],
) -> None:
    changed = with_logprob(pool, place, value)
    for response, reward in zip(changed[place].responses, rewards, strict=False):
        response.reward = reward
    if not changed[place].informative:
        return  # leaves the batch, and so changes how the others are padded
    estimate = scorer(model).score(changed, {"v": target}).estimate
    others = np.arange(len(pool)) != place
    assert estimate.mean["v"][others].tobytes() == plain.mean["v"][others].tobytes()


@pytest.mark.parametrize("factor", [1e-3, 1e8])
def test_rescaled_rewards_leave_the_cosines(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    plain: InfluenceEstimate,
    factor: float,
) -> None:
    for place in range(len(pool)):
        pool = with_rewards(pool, place, factor)
    estimate = scorer(model).score(pool, {"v": target}).estimate
    assert estimate.mean["v"] == pytest.approx(plain.mean["v"], abs=1e-5)


def test_rewards_too_small_for_float32_are_counted(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    estimate = scorer(model).score(with_rewards(pool, 2, 1e-300), {"v": target}).estimate
    assert estimate.status[2] == REWARDS_OUT_OF_RANGE


@pytest.mark.parametrize("scale", [1e308, 1e150, 1e-150])
def test_advantages_do_not_depend_on_the_size_of_huge_rewards(
    pool: list[RolloutGroup], scale: float
) -> None:
    def of(factor: float) -> torch.Tensor:
        groups = [prepare(0, with_rewards(pool, 0, factor)[0])]
        responses = response_tensors(groups, torch.device("cpu"))
        return advantages(responses, torch.ones_like(responses.rewards_R), scale_by_std=True)

    assert of(scale).isfinite().all()
    if scale > 1:
        assert of(scale).tolist() == pytest.approx(of(1e6).tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("rewards", "informative"),
    [
        ((0.3, 0.1 + 0.2), False),
        ((float(np.float32(0.1) + np.float32(0.7)), 0.8), False),
        ((0.0, 0.0), False),
        ((1e6, 1e6 + 1e-7), False),
        ((0.0, 1e-12), True),
        ((1.0, 1.00001), True),
        ((-1e308, 1e308), True),
        ((0.0, 1e-300), True),
    ],
)
def test_rewards_that_differ_by_rounding_are_equal_everywhere(
    pool: list[RolloutGroup], rewards: tuple[float, float], informative: bool
) -> None:
    group = copy.deepcopy(pool[0])
    group.responses = [
        dataclasses.replace(r, reward=reward)
        for r, reward in zip(group.responses, rewards, strict=False)
    ]
    assert group.informative is informative
    responses = response_tensors([prepare(0, group)], torch.device("cpu"))
    ones_R = torch.ones_like(responses.rewards_R)
    assert bool(advantages(responses, ones_R, scale_by_std=True).any()) is informative
    if not informative:
        zero = objective(responses.behaviour_RT - 1, responses, ObjectiveConfig())
        assert zero.tolist() == [0.0]


def test_gradients_that_cancel_are_counted_as_zero(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    still = copy.deepcopy(pool)
    one = still[1].responses[0]
    still[1].responses = [dataclasses.replace(one, reward=reward) for reward in (0.0, 1.0)]
    for sketch in (None, "windowed"):
        influence = scorer(model, sketch).score(still, {"v": target})
        assert influence.estimate.status[1] == ZERO_GRADIENT
        assert np.isnan(influence.estimate.norms[1])
        assert any("left out for zero gradient (p1)" in note for note in influence.notes)


@pytest.mark.parametrize("factor", [1e-22, 1e22])
def test_the_length_of_a_target_does_not_matter(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup], factor: float
) -> None:
    from cropi.gradients.consumers import DirectionConsumer, Directions
    from cropi.influence.cosines import cosines

    device = torch.device("cpu")
    halves = DirectionConsumer({"w": (4, 5)}, np.ones((2, 1)), device)
    torch.manual_seed(0)
    values = torch.randn(2, 4, 5)
    halves.sums.values["w"].copy_(values * factor)
    assert halves.rescale() != 1
    directions = Directions({"w": (4, 5)}, 1, device)
    halves.write_direction(0, directions)
    (norm,) = directions.norms()
    dot = float((directions.values["w"][0] * values[0]).double().sum())
    length = float(values[0].double().norm())
    actual = cosines(np.array([[dot]]), np.array([length]), [norm], ["v"])
    whole = values.sum(0)
    expected = torch.cosine_similarity(whole.flatten(), values[0].flatten(), dim=0)
    assert float(actual[0, 0]) == pytest.approx(float(expected), abs=1e-6)
    assert np.isfinite(halves.half_products()).all()


@pytest.mark.parametrize(("norm", "message"), [(math.inf, "not finite"), (0.0, "sum to zero")])
def test_a_target_without_direction_is_refused_by_name(norm: float, message: str) -> None:
    from cropi.influence.cosines import cosines

    with pytest.raises(InputError, match=f"validation set algebra.*{message}"):
        cosines(np.ones((2, 1)), np.ones(2), [norm], ["algebra"])


def test_a_model_with_another_vocabularys_weights_is_measured(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup]
) -> None:
    sampled, on_policy_target = (on_policy(model, groups) for groups in (pool, target))
    assert scorer(model).score(sampled, {"v": on_policy_target}).notes == []
    permuted = copy.deepcopy(model)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        permuted.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight[order] * 3)
    notes = scorer(permuted).score(sampled, {"v": on_policy_target}).notes
    for what in ("the pool", "validation set v"):
        (note,) = [n for n in notes if n.startswith(what) and "far from" in n]
        assert "nats per token" in note
        assert "effective share" in note


@pytest.mark.parametrize(("nats", "warned"), [(8.0, False), (12.0, True), (29.0, True)])
def test_a_token_that_decides_a_gradient_is_told(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    nats: float,
    warned: bool,
) -> None:
    sampled = on_policy(model, pool)
    sampled[2].responses[0].logprobs[0] -= nats
    influence = scorer(model).score(sampled, {"v": on_policy(model, target)})
    assert influence.estimate.status[2] == SCORED
    assert (
        any("the pool: 1 prompt with a token" in n and "(p2)" in n for n in influence.notes)
        is warned
    )


def test_features_say_that_the_policy_is_not_the_samplers(
    model: nn.Module, pool: list[RolloutGroup], tmp_path: Path
) -> None:
    extractor = GradientExtractor(model, ObjectiveConfig(), 100)
    sketch = make_sketch("windowed", extractor.shapes, 0, dim=256)
    sampled = on_policy(model, pool)
    done = write_features(extractor, sketch, sampled, tmp_path / "same", rollouts="a")
    assert done.notes == []
    sampled[2].responses[0].logprobs[0] -= 12
    done = write_features(extractor, sketch, sampled, tmp_path / "wild", rollouts="b")
    assert any("1 prompt with a token" in note for note in done.notes)


SAMPLER = PolicyIdentity("tiny", "the weights")


def sampled_itself(model: nn.Module, groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """The groups as this model sampled them, with the rounding of an engine."""
    rng = np.random.default_rng(0)
    sampled = on_policy(model, [dataclasses.replace(group, policy=SAMPLER) for group in groups])
    for response in (response for group in sampled for response in group.responses):
        response.logprobs += rng.normal(scale=0.03, size=len(response.ids)).astype(np.float32)
    return sampled


def at_another_temperature(group: RolloutGroup) -> RolloutGroup:
    return dataclasses.replace(group, sampling=Sampling(temperature=0.7))


def rearranged(groups: list[RolloutGroup], order: Sequence[int]) -> list[RolloutGroup]:
    """The groups, each with the responses of the one at its place in `order`."""
    return [
        dataclasses.replace(group, responses=groups[place].responses)
        for group, place in zip(groups, order, strict=True)
    ]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (lambda groups: groups, ""),
        (lambda groups: [at_another_temperature(group) for group in groups], "temperature (0.7)"),
        (lambda groups: rearranged(groups, [0, 4, 2, 3, 1, *range(5, 14)]), "2 of them (p1, p4)"),
        (lambda groups: rearranged(groups, [*range(1, 14), 0]), "correct the rollouts"),
    ],
    ids=["rounding", "temperature", "two prompts exchanged", "all prompts shifted"],
)
@pytest.mark.parametrize("revision", [SAMPLER.revision, "other weights", ""])
def test_a_policy_that_sampled_the_rollouts_gives_them_their_log_probs(
    model: nn.Module,
    target: list[RolloutGroup],
    fault: Callable[[list[RolloutGroup]], list[RolloutGroup]],
    sentence: str,
    revision: str,
) -> None:
    sharp = copy.deepcopy(model)  # as sure of its tokens as a trained model is
    with torch.no_grad():
        sharp.get_input_embeddings().weight.mul_(4)
    faulty = fault(sampled_itself(sharp, mixed_groups(14, seed=1)))
    extractor = GradientExtractor(sharp, ObjectiveConfig(), 100, revision=revision)
    notes = Scorer(extractor).score(faulty, {"v": sampled_itself(sharp, target)}).notes
    about_itself = [note for note in notes if "by policy_revision this policy sampled" in note]
    assert len(about_itself) == bool(sentence and revision == SAMPLER.revision)
    assert all(note.startswith("the pool") and sentence in note for note in about_itself)


def on_policy(model: nn.Module, groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """The groups with the model's own log-probs."""
    from cropi.gradients.logprobs import LogprobReader, read_logprobs

    values = read_logprobs(LogprobReader(model), groups)
    return [
        dataclasses.replace(
            group,
            responses=[
                dataclasses.replace(r, logprobs=v.astype(np.float32))
                for r, v in zip(group.usable, rows, strict=True)
            ],
        )
        for group, rows in zip(groups, values, strict=True)
    ]


def test_features_leave_out_what_scoring_leaves_out(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup], tmp_path: Path
) -> None:
    wild = with_logprob(pool, 3, -9999.0)
    extractor = GradientExtractor(model, ObjectiveConfig(), 100)
    sketch = make_sketch("windowed", extractor.shapes, 0, dim=256)
    for name, groups in (("pool", wild), ("v", target)):
        write_features(extractor, sketch, groups, tmp_path / name, rollouts=name)
    stored = score_features(tmp_path / "pool", {"v": tmp_path / "v"})
    direct = scorer(model, "windowed").score(wild, {"v": target})
    assert stored.estimate.status == direct.estimate.status
    assert FeatureStore(tmp_path / "pool").statuses[3] == RATIO_OUT_OF_RANGE
    assert stored.estimate.mean["v"] == pytest.approx(
        direct.estimate.mean["v"], abs=2e-3, nan_ok=True
    )
    assert any("left out for ratio out of range (p3)" in note for note in stored.notes)


def test_statuses_of_left_out_prompts_survive_the_score_file(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup], tmp_path: Path
) -> None:
    from cropi.store.tables import read_scores, write_scores

    estimate = scorer(model).score(with_logprob(pool, 3, -9999.0), {"v": target}).estimate
    write_scores(tmp_path / "s.parquet", estimate)
    restored = read_scores(tmp_path / "s.parquet")
    assert restored.status == estimate.status
    assert estimate.prompt_ids[3] not in fuse(restored, 7).prompt_ids


def save(tmp_path: Path, groups: list[RolloutGroup], **columns: Any) -> Path:
    """Rollouts with one row's value replaced, past the checks of writing."""
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    write_rollouts(path, groups)
    table = pq.read_table(path)
    for name, value in columns.items():
        values = table[name].to_pylist()
        if isinstance(values[2], list):
            values[2][0] = value
        else:
            values[2] = value
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("logprobs", 0.5, "log-prob above 0"),
        ("logprobs", math.inf, "log-prob above 0"),
        ("logprobs", math.nan, "holds NaN"),
        ("reward", 1e308, r"beyond 1e\+09"),
        ("reward", -1e10, r"beyond 1e\+09"),
        ("reward", math.inf, "is NaN, infinite or null"),
        ("temperature", math.inf, "is not within 0.001 and 1000"),
        ("temperature", 1e30, "is not within 0.001 and 1000"),
        ("temperature", 1e-300, "is not within 0.001 and 1000"),
        ("temperature", math.nan, "is not within 0.001 and 1000"),
    ],
)
def test_impossible_numbers_in_a_file_are_refused_with_file_and_row(
    tmp_path: Path, pool: list[RolloutGroup], column: str, value: float, message: str
) -> None:
    path = save(tmp_path, pool, **{column: value})
    with pytest.raises(InputError, match=f"r.parquet row 2, column {column}: .*{message}"):
        read_rollouts(path)


@pytest.mark.parametrize("value", [-math.inf, -1e30, 1e-4])
def test_log_probs_as_servers_write_them_are_read(
    tmp_path: Path, pool: list[RolloutGroup], value: float
) -> None:
    groups = read_rollouts(save(tmp_path, pool, logprobs=value))
    assert groups[1].responses[0].logprobs[0] == np.float32(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": 1e308}, r"prompt p2, response 0: reward 1e\+308 is beyond"),
        ({"reward": math.inf}, r"prompt p2, response 0: reward inf is not a finite number"),
        ({"logprobs": 1.0}, r"prompt p2, response 0: log-prob 1 is above 0"),
        ({"temperature": math.inf}, r"prompt p2: temperature inf is not within"),
        ({"temperature": 1e-300}, r"prompt p2: temperature 1e-300 is not within"),
    ],
)
def test_impossible_numbers_in_memory_are_refused_with_the_prompt(
    model: nn.Module,
    pool: list[RolloutGroup],
    target: list[RolloutGroup],
    change: dict[str, float],
    message: str,
) -> None:
    wild = copy.deepcopy(pool)
    for name, value in change.items():
        if name == "temperature":
            wild[2].sampling = dataclasses.replace(wild[2].sampling, temperature=value)
        elif name == "logprobs":
            wild[2].responses[0].logprobs[0] = value
        else:
            wild[2].responses[0].reward = value
    with pytest.raises(InputError, match=message):
        cropi.score(model, wild, {"v": target})
    with pytest.raises(InputError, match=message):
        scorer(model).score(target, {"v": wild})


def test_staleness_counts_infinite_ratios(pool: list[RolloutGroup]) -> None:
    wild = with_logprob(pool, 3, -math.inf)
    current = [[r.logprobs.astype(np.float64) for r in g.usable] for g in pool]
    report = measure_staleness(wild, current)
    assert report.refresh == ["p3"]
    assert any("1 prompt (first p3)" in note for note in report.notes)
    figures = [report.ess, report.ess_token, report.kl_token.mean, report.kl_response.mean]
    assert np.isfinite(figures).all()
    others = [p for p in report.prompts if p.prompt_id != "p3"]
    assert [p.kl_token for p in others] == [0.0] * 6


def test_staleness_of_nan_log_probs_is_refused_by_name(pool: list[RolloutGroup]) -> None:
    current = [[r.logprobs.astype(np.float64) for r in g.usable] for g in pool]
    current[4][1][0] = math.nan
    with pytest.raises(InputError, match="prompt p4: a log-prob is NaN"):
        measure_staleness(pool, current)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_fusion_needs_a_finite_constant(plain: InfluenceEstimate, value: float) -> None:
    with pytest.raises(InputError, match=r"fusion constant .* is not a finite number"):
        fuse(plain, 2, value)
    with pytest.raises(InputError, match=r"noise floor .* is not a finite number"):
        fuse(plain, 2, 0.0, value)


@pytest.mark.parametrize(
    "override",
    [
        "verifiers.threshold=.nan",
        "verifiers.timeout=.inf",
        "training.learning_rate=.inf",
        "training.learning_rate=.nan",
        "training.temperature=1e30",
        "rollouts.temperature=.inf",
        "rollouts.temperature=1e-300",
        "selection.ratio=.nan",
        "selection.strategy={name: ranking, fusion_constant: -1}",
        "selection.strategy={name: ranking, fusion_constant: .inf}",
        "selection.strategy={name: ranking, noise_floor: .nan}",
        "influence.objective.clip.high=.inf",
    ],
)
def test_settings_that_are_not_numbers_are_refused_at_load(override: str) -> None:
    key = override.partition("=")[0]
    if "clip" in key:
        override = "influence.objective.clip={low: 0.2, high: .inf}"
    with pytest.raises(InputError, match=key.replace(".", r"\.")) as caught:
        load_config("pocket", [override])
    assert "\n" not in str(caught.value)


def test_statistics_of_readable_rewards_are_finite(pool: list[RolloutGroup]) -> None:
    statistics = rollout_statistics(with_rewards(pool, 1, 9e8))
    assert np.isfinite(statistics.variances).all()


def test_every_reason_to_leave_out_has_a_remedy() -> None:
    from cropi.influence.left_out_prompts import REMEDIES

    assert set(REMEDIES) == set(LEFT_OUT)


def test_a_group_of_unusable_numbers_is_not_judged_by_them(pool: list[RolloutGroup]) -> None:
    group = copy.deepcopy(pool[0])
    broken = Response(np.array([1], np.int32), np.array([5.0], np.float32), reward_status="error")
    group.responses.append(broken)
    assert group.informative
    from cropi.rollouts.number_checks import require_sound_numbers

    require_sound_numbers([group])


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", -1), ("adam_beta2", 2), ("epsilon", -0.1), ("weight_decay", -1), ("adam_beta1", 1)],
)
def test_trainer_settings_out_of_range_are_refused_without_torch(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"grpo.{key} = .*: give a number of at least 0"):
        check_grpo_settings({key: value})


def test_an_infinite_answer_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": 1e999}\n')
    with pytest.raises(InputError, match="row 1, column 'answer' holds a number that is too large"):
        cropi.load_prompts(path)
