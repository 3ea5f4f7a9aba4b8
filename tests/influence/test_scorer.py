"""Influence: exact scores are cosines of materialised gradients, and no prompt is lost."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cropi.config import ObjectiveConfig, TargetMemory
from cropi.errors import InputError
from cropi.gradients.consumers import (
    BLOCK,
    DirectionConsumer,
    Directions,
    block_dots,
    block_squares,
)
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.logprobs import LogprobReader, read_current_rewards
from cropi.influence.left_out_prompts import keep_informative
from cropi.influence.scorer import Scorer
from cropi.influence.targets import TargetReliability, half_weights
from cropi.schema import SCORED, Response, RolloutGroup
from cropi.selection import fuse
from cropi.sketches import SparseSketch, make_sketch
from support.oracle import flatten, oracle_gradient
from support.tiny_models import changed, mixed_groups, random_group, random_response, tiny_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("qwen2-tied")


@pytest.fixture(scope="module")
def pool() -> list[RolloutGroup]:
    return mixed_groups(12, seed=1)


@pytest.fixture(scope="module")
def targets() -> dict[str, list[RolloutGroup]]:
    return {"algebra": mixed_groups(5, seed=2), "words": mixed_groups(3, seed=3)}


def oracle_matrix(model: nn.Module, groups: list[RolloutGroup]) -> Tensor:
    return torch.stack([flatten(oracle_gradient(model, group)) for group in groups])


def oracle_cosines(
    model: nn.Module, pool: list[RolloutGroup], target: list[RolloutGroup], unit: bool = False
) -> np.ndarray:
    gradients = oracle_matrix(model, target)
    if unit:
        gradients = gradients / gradients.norm(dim=1, keepdim=True)
    pool_gradients = oracle_matrix(model, pool)
    return torch.cosine_similarity(pool_gradients, gradients.mean(0)[None], dim=1).numpy()


def scorer(model: nn.Module, **settings: object) -> Scorer:
    return Scorer(GradientExtractor(model, ObjectiveConfig(), 100), **settings)


@pytest.mark.parametrize("target", ["mean", "unit_mean"])
def test_exact_influence_is_the_cosine_of_materialised_gradients(
    model: nn.Module,
    pool: list[RolloutGroup],
    targets: dict[str, list[RolloutGroup]],
    target: str,
) -> None:
    estimate = scorer(model, target=target).score(pool, targets).estimate
    assert estimate.prompt_ids == [group.prompt_id for group in pool]
    for name, groups in targets.items():
        expected = oracle_cosines(model, pool, groups, unit=target == "unit_mean")
        assert estimate.mean[name].dtype == np.float32
        assert np.abs(estimate.mean[name] - expected).max() < 1e-5
    norms = oracle_matrix(model, pool).norm(dim=1).numpy()
    assert estimate.norms == pytest.approx(norms, rel=1e-5)


def test_a_sketch_of_many_dimensions_comes_close_to_exact(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    exact = scorer(model).score(pool, targets).estimate
    errors = []
    for seed in range(3):
        sketched = scorer(model)
        sketched.sketch = SparseSketch(sketched.extractor.shapes, seed, 1.0, 8192)
        estimate = sketched.score(pool, targets).estimate
        errors += [estimate.mean[name] - exact.mean[name] for name in targets]
        assert estimate.norms == pytest.approx(exact.norms, rel=1e-6)
    assert np.sqrt(np.mean(np.square(errors))) < 2 / math.sqrt(8192)


def test_sketched_and_exact_targets_agree_on_unit_means(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    exact = scorer(model, target="unit_mean").score(pool, targets).estimate
    sketched = scorer(model, target="unit_mean")
    sketched.sketch = SparseSketch(sketched.extractor.shapes, 0, 1.0, 1 << 15)
    estimate = sketched.score(pool, targets).estimate
    for name in targets:
        assert np.abs(estimate.mean[name] - exact.mean[name]).max() < 0.03


def test_the_order_of_prompts_changes_no_cosine(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    one = scorer(model).score(pool, targets).estimate
    other = scorer(model).score(pool[::-1], {n: g[::-1] for n, g in targets.items()}).estimate
    for name in targets:
        assert other.mean[name][::-1] == pytest.approx(one.mean[name], abs=1e-6)


def uninformative(kind: str, name: str) -> RolloutGroup:
    group = random_group(np.random.default_rng(0), name, responses=3)
    if kind == "equal":
        return changed(group, lambda r: Response(r.ids, r.logprobs, reward=1.0))
    if kind == "single":
        group.responses = group.responses[:1]
    for response in group.responses[1:]:
        response.reward, response.reward_status = float("nan"), "error"
    return group


def test_skipped_prompts_do_not_shift_scores_onto_other_prompts(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    plain = scorer(model).score(pool, targets).estimate
    mixed = list(pool)
    for index, kind in ((0, "equal"), (3, "errors"), (7, "single"), (11, "equal")):
        mixed.insert(index, uninformative(kind, f"dull-{index}"))
    dull_target = [uninformative("equal", "v"), *targets["algebra"]]
    estimate = scorer(model).score(mixed, {**targets, "algebra": dull_target}).estimate
    assert estimate.prompt_ids == [group.prompt_id for group in mixed]
    assert estimate.status.count(SCORED) == len(pool) == len(mixed) - 4
    assert estimate.scored().prompt_ids == plain.prompt_ids
    assert estimate.pool_size == estimate.scored().pool_size == len(mixed) == len(pool) + 4
    assert estimate.skipped == {"rewards all equal": 2, "fewer than two usable responses": 2}
    for name in targets:
        assert estimate.scored().mean[name] == pytest.approx(plain.mean[name], abs=1e-6)
        assert np.isnan(estimate.mean[name]).tolist() == [s != SCORED for s in estimate.status]
    assert estimate.tokens.tolist() == [group.tokens for group in mixed]
    assert estimate.group_size.tolist() == [len(group.usable) for group in mixed]


@pytest.mark.parametrize("dim", [None, 64])
def test_scores_say_the_mean_reward_under_the_policy_from_the_same_pass(
    model: nn.Module,
    pool: list[RolloutGroup],
    targets: dict[str, list[RolloutGroup]],
    dim: int | None,
) -> None:
    groups = [uninformative("equal", "same"), *pool, uninformative("errors", "unjudged")]
    extractor = GradientExtractor(model, ObjectiveConfig(), 100)
    sketch = None if dim is None else SparseSketch(extractor.shapes, 0, 1.0, dim)
    estimate = Scorer(extractor, sketch).score(groups, targets).estimate
    rewards, shares = read_current_rewards(LogprobReader(model), pool).T
    assert estimate.current_reward is not None
    assert estimate.effective_share is not None
    assert estimate.current_reward[1:-1].tolist() == pytest.approx(rewards.tolist(), abs=1e-4)
    assert estimate.effective_share[1:-1].tolist() == pytest.approx(shares.tolist(), abs=1e-4)
    assert estimate.current_reward[0] == groups[0].rewards.mean()
    assert np.isnan(estimate.current_reward[-1])
    assert np.isnan(estimate.effective_share[[0, -1]]).all()


def test_without_ratios_the_reward_under_the_policy_is_not_known(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    extractor = GradientExtractor(model, ObjectiveConfig(ratio="none"), 100)
    estimate = Scorer(extractor).score(pool, targets).estimate
    assert estimate.current_reward is not None
    assert np.isnan(estimate.current_reward).all()


def test_uninformative_prompts_cost_no_forward_pass(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    dull = [uninformative("equal", f"d{n}") for n in range(4)]
    plain = scorer(model).score(pool, targets)
    assert scorer(model).score([*dull, *pool], targets).tokens == plain.tokens > 0


def test_every_informative_prompt_is_kept_and_every_other_counted() -> None:
    groups = [*mixed_groups(3), uninformative("equal", "a"), uninformative("single", "b")]
    informative = keep_informative(groups)
    assert len(informative.groups) + sum(informative.skipped.values()) == len(groups)


@pytest.mark.parametrize("kind", ["equal", "errors", "none"])
def test_a_target_without_informative_prompts_is_an_error_with_the_set_and_a_fix(
    model: nn.Module, pool: list[RolloutGroup], kind: str
) -> None:
    groups = [] if kind == "none" else [uninformative(kind, "v1"), uninformative(kind, "v2")]
    remedy = "sample (more responses|several)"
    message = rf"validation set geometry has no informative prompt among \d .*{remedy}"
    with pytest.raises(InputError, match=message) as caught:
        scorer(model).score(pool, {"geometry": groups})
    assert "\n" not in str(caught.value)


def test_a_pool_without_informative_prompts_is_an_error(
    model: nn.Module, targets: dict[str, list[RolloutGroup]]
) -> None:
    with pytest.raises(InputError, match="the pool has no informative prompt among 1"):
        scorer(model).score([uninformative("equal", "a")], targets)


def test_targets_whose_gradients_cancel_are_refused(
    model: nn.Module, pool: list[RolloutGroup]
) -> None:
    (group,) = mixed_groups(1, seed=4)
    equal = group.responses[0]
    group.responses = [Response(equal.ids, equal.logprobs, reward=r) for r in (0.0, 1.0)]
    with pytest.raises(InputError, match="validation set still sum to zero"):
        scorer(model).score(pool, {"still": [group]})


@pytest.mark.parametrize("sketched", [False, True])
def test_a_cancelled_gradient_does_not_change_a_unit_mean(
    model: nn.Module, pool: list[RolloutGroup], sketched: bool
) -> None:
    still, *others = mixed_groups(4, seed=5)
    equal = still.responses[0]
    still.responses = [Response(equal.ids, equal.logprobs, reward=r) for r in (0.0, 1.0)]
    cosines = []
    for groups in ([*others, still], others):
        one = scorer(model, target="unit_mean")
        one.sketch = SparseSketch(one.extractor.shapes, 0, 1.0, 512) if sketched else None
        cosines.append(one.score(pool, {"v": groups}).estimate.scored().mean["v"])
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-6)


def test_nan_log_probs_are_the_users_error(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    broken = copy.deepcopy(pool)
    broken[-1].responses[0].logprobs[0] = float("nan")
    with pytest.raises(InputError, match="1 of 12 gradients are not finite"):
        scorer(model).score(broken, targets)


def test_split_half_and_effective_number_describe_the_target(
    model: nn.Module, pool: list[RolloutGroup]
) -> None:
    groups = mixed_groups(6, seed=6)
    reliability = scorer(model).score(pool, {"v": groups}).reliability["v"]
    gradients = oracle_matrix(model, groups)
    norms = gradients.norm(dim=1)
    halves = [gradients[h::2].sum(0) for h in (0, 1)]
    assert reliability.informative == 6
    expected = torch.cosine_similarity(*halves, dim=0)
    assert reliability.split_half == pytest.approx(float(expected), abs=1e-5)
    assert reliability.effective == pytest.approx(
        float(norms.sum() ** 2 / (norms**2).sum()), rel=1e-5
    )
    assert reliability.largest_share == pytest.approx(float(norms.max() / norms.sum()), rel=1e-5)
    sketched = scorer(model)
    sketched.sketch = SparseSketch(sketched.extractor.shapes, 0, 1.0, 1 << 15)
    other = sketched.score(pool, {"v": groups}).reliability["v"]
    assert other.split_half == pytest.approx(reliability.split_half, abs=0.05)
    assert other.effective == pytest.approx(reliability.effective, rel=1e-5)


def test_unit_means_weight_every_prompt_equally(model: nn.Module, pool: list[RolloutGroup]) -> None:
    groups = mixed_groups(5, seed=7)
    reliability = scorer(model, target="unit_mean").score(pool, {"v": groups}).reliability["v"]
    assert reliability.effective == pytest.approx(5, rel=1e-6)
    assert reliability.largest_share == pytest.approx(0.2, rel=1e-6)


def test_a_dominant_prompt_and_disagreeing_halves_give_warnings() -> None:
    assert TargetReliability(8, 0.9, 7.0, 0.2).warnings("v") == []
    (loud,) = TargetReliability(8, 0.9, 1.5, 0.8).warnings("v")
    assert "80%" in loud
    assert "unit_mean" in loud
    (split,) = TargetReliability(8, 0.1, 7.0, 0.2).warnings("v")
    assert "0.10" in split


def test_a_target_of_one_prompt_has_no_second_half(
    model: nn.Module, pool: list[RolloutGroup]
) -> None:
    reliability = scorer(model).score(pool, {"v": mixed_groups(1)}).reliability["v"]
    assert math.isnan(reliability.split_half)


def test_long_sums_are_exact_to_rounding() -> None:
    """`torch.norm` on a long fp32 vector is 1e-3 off; sums by blocks are not."""
    values = torch.rand(2, 10_000_000) + 1
    wide = values.double()
    assert block_squares(values).tolist() == pytest.approx((wide**2).sum(1).tolist(), rel=1e-6)
    dots = block_dots(values[:1], values)
    assert dots[0].tolist() == pytest.approx((wide @ wide[0]).tolist(), rel=1e-6)


def test_directions_are_summed_in_fp32_whatever_the_models_dtype(model: nn.Module) -> None:
    """256 + 1 is 256 in bf16: a sum kept in bf16 would stop growing."""
    consumer = DirectionConsumer(
        {"w": (2,)}, 400 * half_weights(np.ones(400), "mean"), torch.device("cpu")
    )
    for n in range(400):
        consumer.begin(torch.tensor([n]))
        consumer.consume("w", slice(0, 1), torch.full((1, 1, 2), 1.0))
    directions = Directions({"w": (2,)}, 1, torch.device("cpu"))
    consumer.write_direction(0, directions)
    assert directions.read("w", slice(0, 1)).tolist() == [[[400.0, 400.0]]]
    coarse = copy.deepcopy(model).bfloat16()
    shapes = GradientExtractor(coarse).shapes
    halves = DirectionConsumer(shapes, np.ones((2, 1)), torch.device("cpu")).sums
    assert {half.dtype for half in halves.values.values()} == {torch.float32}


def test_bf16_cosines_are_close_to_fp32_ones(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    coarse = copy.deepcopy(model).bfloat16()
    fine = scorer(copy.deepcopy(coarse).float()).score(pool, targets).estimate
    estimate = scorer(coarse).score(pool, targets).estimate
    for name in targets:
        assert np.abs(estimate.mean[name] - fine.mean[name]).max() < 0.02


def mixed_pool(count: int) -> list[RolloutGroup]:
    """Groups of every K, temperature and reward status, some of them uninformative."""
    groups = mixed_groups(count, seed=8)
    rng = np.random.default_rng(9)
    for n, group in enumerate(groups):
        if n % 3 == 0:
            lost = random_response(rng, 4, float("nan"))
            lost.reward_status = ("timeout", "error")[n % 2]
            group.responses.insert(n % len(group.responses), lost)
        if n % 4 == 0:
            group.responses.append(random_response(rng, 0, 1.0))
        if n % 7 == 0:
            for response in group.usable:
                response.reward = 0.5
    return groups


def test_scoring_mixed_groups_in_memory_matches_the_oracle_and_its_top_tenth(
    model: nn.Module, targets: dict[str, list[RolloutGroup]]
) -> None:
    groups = mixed_pool(40)
    estimate = scorer(model).score(groups, targets).estimate.scored()
    scored = [group for group in groups if group.informative]
    assert estimate.prompt_ids == [group.prompt_id for group in scored]
    assert len(scored) < len(groups) == estimate.pool_size
    for name, target in targets.items():
        expected = oracle_cosines(model, scored, target)
        assert np.abs(estimate.mean[name] - expected).max() < 1e-4
        count = max(1, len(scored) // 10)
        top = [set(np.argsort(-c)[:count].tolist()) for c in (estimate.mean[name], expected)]
        assert top[0] == top[1]
    chosen = fuse(estimate, 4)
    assert set(chosen.prompt_ids) <= set(estimate.prompt_ids)


def test_the_identity_names_what_defines_the_scores(model: nn.Module) -> None:
    exact, unit = scorer(model), scorer(model, target="unit_mean")
    sketched = scorer(model)
    sketched.sketch = SparseSketch(sketched.extractor.shapes, 3, 0.5, 64)
    identities = [exact.identity, unit.identity, sketched.identity]
    assert len({tuple(sorted(i.items())) for i in identities}) == 3
    assert sketched.identity["seed"] == "3"


def test_progress_reaches_every_phases_total(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(phase: str, done: int, total: int) -> None:
        seen.setdefault(phase, []).append((done, total))

    scorer(model, progress=note).score(pool, targets)
    assert set(seen) == {"target algebra", "target words", "pool"}
    assert all(steps[-1] == (steps[-1][1],) * 2 for steps in seen.values())


@pytest.mark.parametrize("coordinates", [5, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize(("prompts", "targets"), [(1, 1), (1, 2), (3, 2), (6, 3)])
def test_sums_in_blocks_equal_plain_sums(coordinates: int, prompts: int, targets: int) -> None:
    torch.manual_seed(0)
    gradient, directions = torch.randn(prompts, coordinates), torch.randn(targets, coordinates)
    expected = gradient.double() @ directions.double().T
    assert torch.allclose(block_dots(gradient, directions), expected, rtol=1e-5, atol=1e-3)
    assert torch.allclose(block_squares(gradient), gradient.double().square().sum(1), rtol=1e-6)


@pytest.mark.parametrize(("memory", "tolerance"), [("fp32", 0), ("offload", 0), ("bf16", 1e-3)])
def test_cosines_do_not_depend_on_where_directions_are_held(
    model: nn.Module,
    pool: list[RolloutGroup],
    targets: dict[str, list[RolloutGroup]],
    memory: TargetMemory,
    tolerance: float,
) -> None:
    expected = scorer(model).score(pool, targets).estimate
    elsewhere = scorer(model, target_memory=memory).score(pool, targets).estimate
    for name in targets:
        assert np.abs(elsewhere.mean[name] - expected.mean[name]).max() <= tolerance


def test_an_offloaded_direction_leaves_no_file_behind(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("cropi-directions-*"))
    directions = Directions({"w": (3, 2)}, 2, torch.device("cpu"), "offload")
    directions.write("w", 1, torch.ones(3, 2))
    assert directions.read("w", torch.tensor([2])).tolist() == [[[0, 0]], [[1, 1]]]
    assert set(Path(tempfile.gettempdir()).glob("cropi-directions-*")) == before


def test_a_fitted_sketch_depends_neither_on_the_pools_order_nor_on_targets(
    model: nn.Module, pool: list[RolloutGroup], targets: dict[str, list[RolloutGroup]]
) -> None:
    def scores(
        groups: list[RolloutGroup], sets: dict[str, list[RolloutGroup]]
    ) -> tuple[dict[str, float], str]:
        shapes = GradientExtractor(model).shapes
        sketched = scorer(model, sketch=make_sketch("adaptive", shapes, seed=0, dim=512))
        estimate = sketched.score(groups, sets).estimate
        return dict(zip(estimate.prompt_ids, estimate.mean["algebra"], strict=True)), str(
            sorted(estimate.identity.items())
        )

    ahead, identity = scores(pool, targets)
    reverse, same = scores(pool[::-1], {"algebra": targets["algebra"]})
    assert identity == same
    assert reverse == pytest.approx(ahead, abs=1e-5)
    exact = scorer(model).score(pool, targets).estimate
    for prompt, cosine in zip(exact.prompt_ids, exact.mean["algebra"], strict=True):
        assert ahead[prompt] == pytest.approx(cosine, abs=0.15)
