"""Which of a prompt's responses pull which way, and how sure its influence is by that.

A prompt's gradient is the sum of its responses' (`gradients.response_gradients`), and so is its
cosine:

    U = sum_k c_k,    c_k = <g_k, d> / (|g| |d|)

Without response j it is <g - g_j, d> / (|g - g_j| |d|), with the advantages of the whole group held
fixed: an advantage is how much better than the group a response is, and the group is still known.
The jackknife makes a standard error of these. The formula with advantages of the rest alone was
tried, and is further from the error of two independent draws (docs/design/influence.md).

Shape legend: D unique responses of all prompts, K usable ones of one prompt, P prompts, V targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.estimation.noise import jackknife_error
from cropi.gradients.consumers import Directions, DotConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.response_gradients import ResponseGroups, ResponseProducts
from cropi.influence.cosines import ResponseInfluence
from cropi.progress import Advance
from cropi.schema import RolloutGroup
from cropi.sketches import Sketch, SketchBuffer, SketchConsumer

Array = NDArray[np.float64]
"""Called with the number of prompts that were finished since its last call."""

SKETCHED_PROMPTS = 256
"""Prompts whose responses' sketches are held at once."""
ROUNDING = 1e-9
"""Share of a squared norm below which what is left of it is rounding."""


@dataclass(frozen=True)
class ResponseMeasures:
    """Inner products of responses' gradients: with targets [D, V], themselves and their sum [D]."""

    dots_DV: Array
    squares_D: Array
    with_sum_D: Array
    tokens: int


def exact_measures(
    extractor: GradientExtractor,
    responses: ResponseGroups,
    directions: Directions,
    advance: Advance | None = None,
) -> ResponseMeasures:
    """Compare whole gradients."""
    dots = DotConsumer(directions, responses.count)
    products = ResponseProducts(responses, extractor.device)
    tokens = extractor.run_by_response(responses, [dots, products], advance)
    return ResponseMeasures(dots.dots, products.squares, products.with_sum, tokens)


def sketched_measures(
    extractor: GradientExtractor,
    pool: Sequence[RolloutGroup],
    sketch: Sketch,
    directions_VD: Array,
    advance: Advance | None = None,
) -> ResponseMeasures:
    """Compare sketches, of some prompts after the others: they take as much as the responses."""
    parts = []
    for start in range(0, len(pool), SKETCHED_PROMPTS):
        responses = ResponseGroups(pool[start : start + SKETCHED_PROMPTS])
        buffer = SketchBuffer(responses.count, sketch.dim)
        consumer = SketchConsumer(sketch, buffer, extractor.device)
        tokens = extractor.run_by_response(responses, [consumer], advance)
        own_DD = buffer.sketches.double().numpy()
        sums = [own_DD[indices].sum(0) for indices in responses.indices]
        with_sum_D = np.einsum("nd,nd->n", own_DD, np.array(sums)[responses.owners()])
        squares_D = np.einsum("nd,nd->n", own_DD, own_DD)
        parts.append(ResponseMeasures(own_DD @ directions_VD.T, squares_D, with_sum_D, tokens))
    return joined_measures(parts)


def joined_measures(parts: Sequence[ResponseMeasures]) -> ResponseMeasures:
    """The measures of all responses, from those of runs of prompts in their order."""
    return ResponseMeasures(
        np.concatenate([part.dots_DV for part in parts]),
        np.concatenate([part.squares_D for part in parts]),
        np.concatenate([part.with_sum_D for part in parts]),
        sum(part.tokens for part in parts),
    )


def response_influence(
    responses: ResponseGroups,
    measures: ResponseMeasures,
    norms_P: NDArray[np.floating],
    lengths_V: Sequence[float],
) -> ResponseInfluence:
    """Each response's part of the cosines, for the norms that the cosines were divided by."""
    unit_DV = measures.dots_DV / np.array(lengths_V)
    lengths_P = np.where(norms_P > 0, norms_P, 1.0)
    parts = [unit_DV[indices] / n for indices, n in zip(responses.indices, lengths_P, strict=True)]
    errors = [
        jackknife_error(_cosines_without(unit_DV[k], measures.squares_D[k], measures.with_sum_D[k]))
        for k in responses.indices
    ]
    return ResponseInfluence(parts, np.array(errors), measures.tokens)


def _cosines_without(dots_KV: Array, squares_K: Array, with_sum_K: Array) -> Array:
    """The cosines [K, V] of what is left of a gradient without each of its terms; 0 of nothing."""
    whole = with_sum_K.sum()
    left_K = whole - 2 * with_sum_K + squares_K
    is_zero_K = left_K <= ROUNDING * (whole + squares_K)
    lengths_K = np.sqrt(np.where(is_zero_K, 1.0, left_K))
    cosines_KV = (dots_KV.sum(0) - dots_KV) / lengths_K[:, None]
    return np.where(is_zero_K[:, None], 0.0, np.clip(cosines_KV, -1.0, 1.0))
