"""Standard errors of influence: which prompts have one, and what replaces an unknown one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cropi.estimation.noise import (
    exceeds_noise,
    noise_scale,
    pooled_standard_error,
    running_mean,
    with_pooled_errors,
)
from cropi.schema import InfluenceEstimate

NAN = float("nan")


def estimate(**cosines: list[float]) -> InfluenceEstimate:
    count = len(next(iter(cosines.values())))
    values = {name: np.array(cosine) for name, cosine in cosines.items()}
    return InfluenceEstimate.from_means([f"p{n}" for n in range(count)], values)


def test_the_noise_scale_is_the_median_of_the_negative_half_by_hand() -> None:
    cosine = np.array([0.9, 0.1, 0.0, -0.1, -0.2, -0.6, NAN])
    assert noise_scale(cosine) == pytest.approx(0.2 / 0.6745)
    assert noise_scale(np.array([0.1, 0.0])) == 0


def test_every_measured_prompt_has_the_pooled_error_and_no_other() -> None:
    errors = pooled_standard_error({"v": np.array([0.5, NAN, -0.2], np.float32)})
    assert errors["v"].dtype == np.float64
    assert np.isnan(errors["v"]).tolist() == [False, True, False]
    assert errors["v"][0] == errors["v"][2] == pytest.approx(0.2 / 0.6745)


def test_pooled_errors_replace_prompts_own() -> None:
    given = estimate(v=[0.5, -0.1], w=[0.5, -0.1])
    given = replace(given, standard_error=given.standard_error | {"v": np.array([0.4, 0.4])})
    pooled = with_pooled_errors(given)
    for name in ("v", "w"):
        assert pooled.standard_error[name] == pytest.approx([0.1 / 0.6745] * 2)


def test_the_noise_floor_follows_each_prompts_standard_error() -> None:
    given = estimate(v=[0.5, 0.5, 0.5])
    given = replace(given, standard_error={"v": np.array([0.1, 0.2, 0.3])})
    assert exceeds_noise(given, 2.0).tolist() == [True, True, False]
    assert exceeds_noise(given, 4.0).tolist() == [True, False, False]


def test_a_combined_estimate_has_the_errors_of_the_combined_means() -> None:
    combined = running_mean(estimate(v=[0.4, -0.2]), [estimate(v=[0.0, -0.6])], 0.5)
    assert combined.mean["v"].tolist() == pytest.approx([0.2, -0.4])
    assert combined.standard_error["v"] == pytest.approx([0.4 / 0.6745] * 2)
