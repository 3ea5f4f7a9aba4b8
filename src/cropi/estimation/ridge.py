"""Bayesian linear regression: what many noisy measurements say together, and how sure they are.

    y = X w + noise,    w ~ N(0, 1/alpha),    noise ~ N(0, 1/beta)

Both precisions are set to their maximum marginal likelihood (MacKay, "Bayesian Interpolation",
1992), so that nothing is to be tuned, and several X can be compared by their evidence.

Shape legend: N measurements, P places to predict at, F features, R = min(N, F).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.short_repr import ShortRepr

Array = NDArray[np.float64]

ROUNDS = 100
"""Most updates of the two precisions; they settle sooner, to TOLERANCE."""
TOLERANCE = 1e-6
LEAST_VARIANCE = 1e-18
"""Below this, values do not vary: there is nothing to learn from them."""


@dataclass(frozen=True, repr=False)
class Prediction(ShortRepr):
    """Posterior means [P], their standard errors [P], and the prior's standard deviations [P]."""

    mean_P: Array
    error_P: Array
    prior_P: Array


@dataclass(frozen=True, repr=False)
class Ridge(ShortRepr):
    """The posterior of a fit: in the basis of the features' right singular vectors [R, F].

    `evidence` is the log marginal likelihood, `noise` the standard deviation of the noise.
    """

    mean_R: Array
    variance_R: Array
    basis_RF: Array
    prior_variance: float
    noise: float
    evidence: float

    def predict(self, features_PF: NDArray[np.floating]) -> Prediction:
        """The posterior of X w; the noise is not in it."""
        features_PF = features_PF.astype(np.float64, copy=False)
        places_PR = features_PF @ self.basis_RF.T
        square_P = (features_PF**2).sum(1)
        beyond_P = (square_P - (places_PR**2).sum(1)).clip(min=0)
        variance_P = (places_PR**2) @ self.variance_R + self.prior_variance * beyond_P
        return Prediction(
            places_PR @ self.mean_R, np.sqrt(variance_P), np.sqrt(self.prior_variance * square_P)
        )


def fit_ridge(features_NF: NDArray[np.floating], values_N: Array) -> Ridge:
    """Fit values without an offset; subtract their mean first where they have one."""
    matrix_NF = features_NF.astype(np.float64, copy=False)
    left_NR, sizes_R, basis_RF = np.linalg.svd(matrix_NF, full_matrices=False)
    square, count = float(values_N @ values_N), len(values_N)
    if square <= LEAST_VARIANCE * count:
        zero_R = np.zeros(len(sizes_R))
        return Ridge(zero_R, zero_R, basis_RF, 0.0, math.sqrt(square / count), math.inf)
    seen_R = left_NR.T @ values_N
    alpha, beta = _precisions(sizes_R, seen_R, square, count)
    variance_R = 1 / (alpha + beta * sizes_R**2)
    mean_R = beta * variance_R * sizes_R * seen_R
    misfit = _misfit(sizes_R, seen_R, square, mean_R)
    fit = beta * misfit + alpha * float(mean_R @ mean_R)
    size = float(np.log(alpha * variance_R).sum()) + count * math.log(beta / (2 * math.pi))
    evidence = 0.5 * (size - fit)
    return Ridge(mean_R, variance_R, basis_RF, 1 / alpha, beta**-0.5, evidence)


def _misfit(sizes_R: Array, seen_R: Array, square: float, mean_R: Array) -> float:
    """|y - X w|^2 at the mean."""
    return float(square - 2 * (sizes_R * seen_R) @ mean_R + (sizes_R**2) @ mean_R**2)


def _precisions(sizes_R: Array, seen_R: Array, square: float, count: int) -> tuple[float, float]:
    """alpha and beta at their maximum marginal likelihood, by MacKay's fixed point."""
    alpha = beta = count / square
    for _ in range(ROUNDS):
        mean_R = beta * sizes_R * seen_R / (alpha + beta * sizes_R**2)
        determined = float((beta * sizes_R**2 / (alpha + beta * sizes_R**2)).sum())
        before = alpha, beta
        # Bounded, where all is noise (alpha grows without end) or none is (beta does).
        alpha = _between(determined, float(mean_R @ mean_R), count / square)
        misfit = _misfit(sizes_R, seen_R, square, mean_R)
        beta = _between(count - determined, misfit, count / square)
        if max(abs(math.log(alpha / before[0])), abs(math.log(beta / before[1]))) < TOLERANCE:
            break
    return alpha, beta


def _between(top: float, bottom: float, scale: float) -> float:
    """top / bottom, within 1e10 times the scale either way."""
    return float(np.clip(top / max(bottom, 1e-300), 1e-10 * scale, 1e10 * scale))


def combined(predictions: Sequence[Prediction]) -> tuple[Array, Array]:
    """Mean and error [P] that independent measurements of the same values come to together.

    Each posterior holds its prior, which is no measurement: where nothing was learnt it is narrow,
    and would outweigh all that others have learnt. So what was measured is combined by its
    precision, 1 / error^2 - 1 / prior^2, under the widest of the priors.
    """
    widest_P = np.max([each.prior_P for each in predictions], axis=0)
    precision_P = _precision(widest_P)
    sum_P = np.zeros(len(widest_P))
    for each in predictions:
        posterior_P = _precision(each.error_P)
        precision_P = precision_P + (posterior_P - _precision(each.prior_P)).clip(min=0)
        sum_P += posterior_P * each.mean_P
    error_P = np.divide(1, np.sqrt(precision_P), out=np.zeros(len(sum_P)), where=precision_P > 0)
    return sum_P * error_P**2, error_P


def _precision(deviation_P: Array) -> Array:
    """1 / deviation^2; 0 where the deviation is 0: nothing was learnt there (`fit_ridge`)."""
    return np.divide(1, deviation_P**2, out=np.zeros(len(deviation_P)), where=deviation_P > 0)


def fit_best(features_LNF: Sequence[NDArray[np.floating]], values_N: Array) -> tuple[int, Ridge]:
    """The fit of most evidence among several kinds of features, and which; ties: the first."""
    fits = [fit_ridge(features_NF, values_N) for features_NF in features_LNF]
    best = max(range(len(fits)), key=lambda i: (fits[i].evidence, -i))
    return best, fits[best]
