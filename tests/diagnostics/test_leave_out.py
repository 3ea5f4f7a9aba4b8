"""Leaving prompts out: what is predicted, what is retrained, and what is made of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cropi.diagnostics import diagnose_loo
from cropi.diagnostics.diagnosis_settings import LeaveOutSettings
from cropi.diagnostics.leave_out import leave_out_report, plan_blocks, predicted_change
from cropi.diagnostics.leave_out_experiment import experiment_config
from cropi.errors import InputError
from cropi.rollouts import read_rollouts
from cropi.schema import InfluenceEstimate
from cropi.store.tables import read_scores
from support.fakes import FakeTrainer
from support.tiny_runs import fake_config

SMALL = LeaveOutSettings(steps=2, share=0.3, random_blocks=2, repeats=2)


def scores(count: int = 40, unscored: int = 10) -> InfluenceEstimate:
    draws = np.random.default_rng(0)
    means = {"v": draws.uniform(-1, 1, count), "w": draws.uniform(-1, 1, count)}
    names = [f"p{n:02d}" for n in range(count)]
    estimate = InfluenceEstimate.from_means(names, means, {"rewards all equal": unscored})
    estimate.norms = draws.uniform(1, 2, count).astype(np.float32)
    return estimate


def test_the_prediction_is_the_change_of_the_pools_mean_projection() -> None:
    projections = np.array([3.0, -1.0, 4.0])
    whole = [3.0, -1.0, 4.0, 0.0, 0.0]  # two prompts have no gradient
    expected = np.mean([-1.0, 0.0, 0.0]) - np.mean(whole)
    assert predicted_change(projections, np.array([0, 2]), 5) == pytest.approx(expected)
    assert predicted_change(projections, np.array([], np.int64), 5) == 0


def accuracies(noise: float, sign: float = 1.0) -> tuple[InfluenceEstimate, list, list]:
    """Accuracies that follow the predictions, but for noise."""
    estimate, draws = scores(), np.random.default_rng(1)
    plans = plan_blocks(estimate, ["v", "w"], 0.25, 8, seed=0)
    without = [
        {
            name: 0.6
            + sign * predicted_change(estimate.mean[name] * estimate.norms, plan.members, 50)
            + draws.normal(0, noise)
            for name in ("v", "w")
        }
        for plan in plans
    ]
    return estimate, plans, without


def test_what_follows_the_prediction_is_as_predicted_and_the_opposite_is_not() -> None:
    for sign, expected in ((1.0, True), (-1.0, False)):
        estimate, plans, without = accuracies(0.01, sign)
        whole = [{"v": 0.6, "w": 0.6}, {"v": 0.61, "w": 0.6}]
        report = leave_out_report(estimate, plans, {"v": 0.4, "w": 0.4}, whole, without, 9)
        assert report.as_predicted is expected
        assert [target.in_order for target in report.targets] == [expected, expected]
        for target in report.targets:
            assert sign * target.correlation.mean > 0.9
            assert len(target.blocks) == 2 * 2 + 8
        assert report.pool == 50
        assert report.verdict.startswith("As predicted" if expected else "Not shown")
        assert "training on all of it again: within 6.4" in report.verdict


def test_noise_is_not_taken_for_agreement() -> None:
    estimate, plans, without = accuracies(50.0)
    whole = [{"v": 0.6, "w": 0.6}]
    report = leave_out_report(estimate, plans, {"v": 0.4, "w": 0.4}, whole, without, 9)
    assert not report.as_predicted
    same = [dict.fromkeys(("v", "w"), 0.6) for _ in plans]
    solved = leave_out_report(estimate, plans, {"v": 1.0, "w": 1.0}, whole, same, 9)
    assert not solved.as_predicted
    assert "no correlation of predicted and actual change is defined" in solved.verdict


def test_blocks_are_the_ends_of_each_ranking_and_random_ones() -> None:
    estimate = scores()
    plans = plan_blocks(estimate, ["v"], 0.25, 3, seed=0)
    assert [plan.band for plan in plans] == ["top", "bottom", "random", "random", "random"]
    order = np.argsort(-estimate.mean["v"])
    assert set(plans[0].members) == set(order[:10])
    assert set(plans[1].members) == set(order[-10:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"share": 0.5}, "share 0.5 is not"), ({"repeats": 0}, "repeats 0 is too few")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LeaveOutSettings(**settings)


def test_a_set_is_evaluated_on_the_test_set_of_its_name_or_else_itself(tmp_path: Path) -> None:
    two = "prompts.validation.shift=[{pocket: [shift], split: validation, size: 4}]"
    assert [*experiment_config(fake_config(tmp_path), SMALL).prompts.test] == ["sort"]
    assert experiment_config(fake_config(tmp_path, two), SMALL).prompts.test == {}
    without = fake_config(tmp_path, "prompts.validation={}", "selection.strategy=random")
    with pytest.raises(InputError, match=r"prompts\.validation is empty"):
        experiment_config(without, SMALL)


def test_every_block_is_left_out_of_one_training_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fake_config(tmp_path, "prompts.pool=[{pocket: [sort, shift], split: pool, size: 24}]")
    report = diagnose_loo(config, settings=SMALL)
    (target,) = report.targets
    assert target.whole.count == 2
    assert [b.band for b in target.blocks] == ["top", "bottom", "random", "random"]

    arms = config.directory.with_name("tiny-loo") / "arms"
    scored = read_scores(arms / "scores/stages/0/scores.parquet").scored()
    plans = plan_blocks(scored, ["sort"], SMALL.share, SMALL.random_blocks, SMALL.seed)
    for number, plan in enumerate(plans):
        stage = arms / f"without-{number}" / "stages/0"
        trained = {g.prompt_id for g in read_rollouts(stage / "rollouts/training.parquet")}
        assert trained
        assert not trained & {scored.prompt_ids[place] for place in plan.members}
        assert not list(stage.glob("policy/*.safetensors"))
    first, again = (
        (arms / f"whole-{n}/stages/0/rollouts/training.parquet").read_bytes() for n in (0, 1)
    )
    assert first != again

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(FakeTrainer, "train", refuse)
    assert diagnose_loo(config, settings=SMALL) == report
