"""The Bayesian ridge against dense formulas, and on data that it should or should not believe."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cropi.estimation.ridge import Prediction, combined, fit_ridge


def data(
    seed: int, count: int, features: int, noise: float, signal: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, a linear function of them, and noisy measurements of it."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, features))
    truth = x @ draw.normal(0, signal, features)
    return x, truth, truth + draw.normal(0, noise, count)


def dense_evidence(x: np.ndarray, y: np.ndarray, prior_variance: float, noise: float) -> float:
    """The log density of y under its normal distribution, by its covariance."""
    covariance = prior_variance * x @ x.T + noise**2 * np.eye(len(y))
    half_logdet = np.log(np.diag(np.linalg.cholesky(covariance))).sum()
    square = y @ np.linalg.solve(covariance, y)
    return float(-0.5 * square - half_logdet - 0.5 * len(y) * math.log(2 * math.pi))


SIZES = [(40, 5), (40, 40), (25, 60)]


@pytest.mark.parametrize(("count", "features"), SIZES)
def test_posterior_and_evidence_are_those_of_the_dense_formulas(count: int, features: int) -> None:
    x, _, y = data(1, count, features, 0.7)
    ridge = fit_ridge(x, y)
    places = np.random.default_rng(2).normal(size=(9, features))
    precision = np.eye(features) / ridge.prior_variance + x.T @ x / ridge.noise**2
    weights = np.linalg.solve(precision, x.T @ y) / ridge.noise**2
    deviations = np.sqrt(np.diag(places @ np.linalg.solve(precision, places.T)))
    prediction = ridge.predict(places)
    mean, deviation = prediction.mean_P, prediction.error_P
    lengths = np.sqrt(ridge.prior_variance * (places**2).sum(1))
    assert prediction.prior_P == pytest.approx(lengths)
    assert mean == pytest.approx(places @ weights, rel=1e-6)
    assert deviation == pytest.approx(deviations, rel=1e-6)
    expected = dense_evidence(x, y, ridge.prior_variance, ridge.noise)
    assert ridge.evidence == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "features"), SIZES[:2])
def test_no_other_precisions_have_more_evidence(count: int, features: int) -> None:
    x, _, y = data(3, count, features, 0.7)
    ridge = fit_ridge(x, y)
    for prior in (0.8, 1, 1.25):
        for noise in (0.9, 1, 1.1):
            other = dense_evidence(x, y, prior * ridge.prior_variance, noise * ridge.noise)
            assert other <= ridge.evidence + 1e-4


def test_predictions_are_as_sure_as_they_are_right() -> None:
    """Errors in units of their own deviation have variance 1, over many worlds."""
    errors = []
    for seed in range(60):
        x, truth, y = data(seed, 120, 10, 2.0)
        prediction = fit_ridge(x[:60], y[:60]).predict(x[60:])
        errors.append(((prediction.mean_P - truth[60:]) / prediction.error_P) ** 2)
    assert np.mean(errors) == pytest.approx(1.0, abs=0.3)


def test_noise_alone_is_not_believed() -> None:
    x, _, y = data(5, 300, 20, 1.0, signal=0.0)
    assert np.std(fit_ridge(x, y).predict(x).mean_P) < 0.15
    assert fit_ridge(x, y).noise == pytest.approx(1.0, abs=0.1)


def test_features_that_explain_have_more_evidence() -> None:
    x, _, y = data(7, 80, 6, 0.5)
    other = np.random.default_rng(8).normal(size=x.shape)
    assert fit_ridge(x, y).evidence > fit_ridge(other, y).evidence + 20


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_change_of_units_changes_nothing_else(scale: float) -> None:
    x, _, y = data(9, 50, 8, 0.5)
    plain, scaled = (fit_ridge(x, values).predict(x) for values in (y, scale * y))
    assert scaled.mean_P == pytest.approx(scale * plain.mean_P, rel=1e-4)
    assert scaled.error_P == pytest.approx(scale * plain.error_P, rel=1e-3)


def test_values_without_variation_predict_nothing() -> None:
    x, _, _ = data(9, 20, 3, 0.5)
    prediction = fit_ridge(x, np.zeros(20)).predict(x)
    assert not prediction.mean_P.any()
    assert not prediction.error_P.any()


def test_exact_values_are_found_exactly() -> None:
    x, truth, _ = data(11, 50, 8, 0.5)
    assert fit_ridge(x, truth).predict(x).mean_P == pytest.approx(truth, abs=1e-3)


def test_measurements_are_combined_by_precision_under_one_prior() -> None:
    """Two halves of the measurements of one value come to what all of them say."""
    draw = np.random.default_rng(0)
    values, prior, noise = draw.normal(0, 2.0, 5), 2.0, 0.7

    def posterior(measured: np.ndarray) -> Prediction:
        precision = 1 / prior**2 + len(measured) / noise**2
        return Prediction(measured.sum(0) / noise**2 / precision, np.full(5, precision**-0.5),
                          np.full(5, prior))  # fmt: skip

    measured = values + draw.normal(0, noise, (6, 5))
    mean, error = combined([posterior(measured[:2]), posterior(measured[2:])])
    together = posterior(measured)
    assert mean == pytest.approx(together.mean_P)
    assert error == pytest.approx(together.error_P)


def test_what_learnt_nothing_outweighs_nothing() -> None:
    learnt = Prediction(np.array([1.0]), np.array([0.5]), np.array([2.0]))
    narrow = Prediction(np.array([0.0]), np.array([1e-6]), np.array([1e-6]))
    constant = Prediction(np.zeros(1), np.zeros(1), np.zeros(1))
    mean, error = combined([learnt, narrow, constant])
    assert (mean[0], error[0]) == (pytest.approx(1.0), pytest.approx(0.5))
    assert combined([constant])[1].tolist() == [0.0]
