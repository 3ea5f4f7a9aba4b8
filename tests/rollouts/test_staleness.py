"""Staleness figures of policies whose distance is given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cropi.diagnostics import diagnose_staleness
from cropi.errors import InputError
from cropi.estimation.intervals import mean_interval, share_interval, t_quantile
from cropi.rollouts.staleness import effective_share, k3, measure_staleness
from cropi.schema import Response, RolloutGroup, Sampling


def group(name: str, logps: list[list[float]], **sampling: float) -> RolloutGroup:
    """Responses with these behaviour log-probs, rewards alternating."""
    responses = [
        Response(
            np.arange(len(logprobs), dtype=np.int32),
            np.array(logprobs, dtype=np.float32),
            reward=float(k % 2),
        )
        for k, logprobs in enumerate(logps)
    ]
    return RolloutGroup(name, np.array([1], np.int32), responses, Sampling(**sampling))


def shifted(groups: list[RolloutGroup], shift: list[list[float]]) -> list[list[np.ndarray]]:
    """Policy log-probs: the stored ones plus one number per response."""
    return [
        [r.logprobs.astype(np.float64) + s for r, s in zip(g.usable, shifts, strict=True)]
        for g, shifts in zip(groups, shift, strict=True)
    ]


def test_the_sampler_itself_is_fresh() -> None:
    groups = [group("a", [[-1.0, -2.0], [-0.5]]), group("b", [[-3.0], [-1.0, -1.0]])]
    report = measure_staleness(groups, shifted(groups, [[0, 0], [0, 0]]))
    assert report.ess == report.ess_token == report.prompt_ess.mean == 1
    assert report.kl_token.mean == report.kl_response.mean == 0
    assert report.tails.outside_narrow == report.tails.outside_wide == 0
    assert report.level == "fresh"
    assert report.refresh == []


def test_effective_share_is_one_over_k_when_one_response_owns_the_weight() -> None:
    assert effective_share(np.array([0.0, -900.0, -900.0, -900.0])) == pytest.approx(0.25)


def test_effective_share_does_not_depend_on_the_weights_scale() -> None:
    logs = np.random.default_rng(0).normal(0, 1, 50)
    plain = np.exp(logs).sum() ** 2 / (np.exp(logs) ** 2).sum() / 50
    for shift in (-2000.0, 0.0, 2000.0):
        assert effective_share(logs + shift) == pytest.approx(plain)


def test_k3_is_never_negative_and_has_the_divergences_mean() -> None:
    beta, pi = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    log_ratio = np.log(pi / beta)
    assert (k3(log_ratio) >= 0).all()
    assert (beta * k3(log_ratio)).sum() == pytest.approx((beta * -log_ratio).sum())


def test_weights_of_whole_responses_multiply_over_tokens() -> None:
    groups = [group("a", [[-1.0] * 4, [-1.0] * 4])]
    report = measure_staleness(groups, shifted(groups, [[math.log(2) / 4, 0.0]]))
    assert report.prompts[0].ess == pytest.approx(9 / 5 / 2)
    assert report.prompts[0].mean_weight == pytest.approx(1.5)
    assert report.kl_response.mean == pytest.approx(-math.log(2) / 2)


def test_tokens_that_are_not_the_policys_have_no_weight() -> None:
    whole = group("a", [[-1.0, -2.0], [-0.5, -0.5]])
    masked = group("a", [[-1.0, -9.0, -2.0], [-0.5, -0.5, -9.0]])
    masked.responses[0].loss_mask = np.array([1, 0, 1], np.uint8)
    masked.responses[1].loss_mask = np.array([1, 1, 0], np.uint8)
    plain = [[np.array([-1.5, -1.0]), np.array([-0.2, -0.9])]]
    with_others = [[np.array([-1.5, 7.0, -1.0]), np.array([-0.2, -0.9, 7.0])]]
    assert measure_staleness([masked], with_others) == measure_staleness([whole], plain)


def test_only_prompts_whose_weights_differ_are_to_be_refreshed() -> None:
    groups = [group(n, [[-1.0]] * 4) for n in ("calm", "wild", "steady")]
    report = measure_staleness(groups, shifted(groups, [[0] * 4, [5, 0, 0, 0], [0.1] * 4]))
    assert report.refresh == ["wild"]
    assert report.worst[0].prompt_id == "wild"
    assert report.level == "partly stale"
    assert "1 stale" in report.verdict


def test_responses_left_behind_alike_are_stale_though_their_weights_are_equal() -> None:
    groups = [group("gone", [[-1.0]] * 4), group("cut", [[-1.0]] * 4, top_p=0.9)]
    report = measure_staleness(groups, shifted(groups, [[-9] * 4, [-9] * 4]))
    gone, cut = report.prompts
    assert gone.ess == pytest.approx(1)
    assert gone.stale
    assert not cut.stale, "under top_p weights are below one by design"
    assert any("top_p" in note for note in report.notes)


def test_one_response_says_nothing_about_spread() -> None:
    groups = [group("single", [[-1.0]]), group("pair", [[-1.0], [-1.0]])]
    report = measure_staleness(groups, shifted(groups, [[3.0], [0.0, 0.0]]))
    assert report.prompts[0].ess is None
    assert report.stale.count == 1
    assert any("one usable response" in note for note in report.notes)


def test_tails_count_tokens() -> None:
    groups = [group("a", [[-1.0] * 10, [-1.0] * 10])]
    ratios = np.log(np.array([0.4, 0.7, 0.9] + [1.0] * 14 + [1.2, 1.5, 3.0]))
    new = [groups[0].responses[k].logprobs + ratios[10 * k : 10 * k + 10] for k in (0, 1)]
    report = measure_staleness(groups, [new])
    assert report.tails.outside_wide == pytest.approx(2 / 20)
    assert report.tails.outside_narrow == pytest.approx(4 / 20)
    assert report.tails.quantiles["50%"] == pytest.approx(1, rel=1e-6)
    assert sum(report.histogram) == 20


def test_rollouts_without_a_verdict_are_refused() -> None:
    empty = RolloutGroup(
        "a", np.array([1], np.int32), [Response(np.zeros(0, np.int32), np.zeros(0))]
    )
    with pytest.raises(InputError, match="no rollout has a usable response"):
        diagnose_staleness([empty], "pocket")


def test_intervals_are_students_and_wilsons() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), abs=1e-3)
    assert mean_interval([1.0]).low is None
    assert t_quantile(60) == pytest.approx(2.0003, abs=2e-3)
    none = share_interval(0, 50)
    assert none.low == none.mean == 0
    assert none.high == pytest.approx(0.0713, abs=1e-3)
