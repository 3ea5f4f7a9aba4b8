"""What a pass over pool prompts measures, the same joined from passes over parts, and its scores.

Shape legend: P prompts, V targets, D dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.gradients.pass_record import ExtractionReport, joined_ratios
from cropi.gradients.response_gradients import ResponseGroups
from cropi.influence.cosines import cosines
from cropi.influence.growing_pool import PoolScores
from cropi.influence.left_out_prompts import (
    distance_notes,
    extreme_ratio_notes,
    gradient_statuses,
    left_out_notes,
    own_sampler_notes,
    require_finite_norms,
    require_some_in_range,
)
from cropi.influence.response_influence import (
    ResponseMeasures,
    joined_measures,
    response_influence,
)
from cropi.schema import RolloutGroup

Groups = Sequence[RolloutGroup]


@dataclass(frozen=True)
class PoolPass:
    """What was measured of informative prompts, before anything is concluded from it.

    `dots_PV` float64 are with each direction, of gradients or sketches of length `lengths_P`;
    `norms_P` are the gradients' own.
    """

    dots_PV: NDArray[np.float64]
    norms_P: NDArray[np.float64]
    lengths_P: NDArray[np.float64]
    report: ExtractionReport
    sketches_PD: NDArray[np.floating] | None = None
    responses: ResponseMeasures | None = None


def joined_passes(parts: Sequence[PoolPass]) -> PoolPass:
    """The pass over all prompts, from passes over runs of them in their order."""
    sketches = [each.sketches_PD for each in parts if each.sketches_PD is not None]
    responses = [each.responses for each in parts if each.responses is not None]
    return PoolPass(
        np.concatenate([each.dots_PV for each in parts]),
        np.concatenate([each.norms_P for each in parts]),
        np.concatenate([each.lengths_P for each in parts]),
        joined_reports([each.report for each in parts]),
        np.concatenate(sketches) if sketches else None,
        joined_measures(responses) if responses else None,
    )


def joined_reports(parts: Sequence[ExtractionReport]) -> ExtractionReport:
    """The report on all prompts, from reports on runs of them in their order."""
    firsts = np.cumsum([0, *(each.prompts for each in parts)]).tolist()
    ratios = [(first, each.ratios) for first, each in zip(firsts, parts, strict=False)]
    return ExtractionReport(
        sum(each.tokens for each in parts),
        "/".join(sorted({each.path for each in parts})),
        [status for each in parts for status in each.statuses],
        joined_ratios(ratios),
        np.concatenate([each.current_rewards for each in parts]),
        np.concatenate([each.own_distances for each in parts]),
    )


def pool_scores(
    pool: Groups, measured: PoolPass, lengths_V: Sequence[float], names: Sequence[str]
) -> PoolScores:
    """The scores of prompts from what was measured of them and the directions' lengths.

    Raises InputError if a gradient is not finite, or numbers out of range leave no prompt.
    """
    shortest_P = np.minimum(measured.lengths_P, measured.norms_P)
    statuses, notes = usable_statuses("the pool", pool, measured.report, shortest_P)
    responses = None
    if measured.responses is not None:
        responses = response_influence(
            ResponseGroups(pool), measured.responses, measured.lengths_P, lengths_V
        )
    return PoolScores(
        cosines(measured.dots_PV, measured.lengths_P, lengths_V, names),
        measured.norms_P,
        measured.report.current_rewards,
        statuses,
        notes,
        responses,
        measured.sketches_PD,
    )


def usable_statuses(
    what: str, groups: Groups, report: ExtractionReport, norms_P: NDArray[np.float64]
) -> tuple[list[str], list[str]]:
    """The statuses [P] of a pass's prompts, and notes about those that are left out.

    Raises InputError if a gradient is not finite, or numbers out of range leave no prompt.
    """
    ids = [group.prompt_id for group in groups]
    require_finite_norms(what, ids, norms_P)
    require_some_in_range(what, ids, report.statuses)
    statuses = gradient_statuses(report.statuses, norms_P)
    return statuses, [*left_out_notes(what, ids, statuses), *ratio_notes(what, groups, report)]


def ratio_notes(what: str, groups: Groups, report: ExtractionReport) -> list[str]:
    """What the ratios that a pass saw say about policy and sampler of the rollouts of `what`."""
    ratios = report.ratios
    if ratios is None or any(group.logprobs_at_another_temperature for group in groups):
        return []
    extreme = extreme_ratio_notes(what, [groups[index].prompt_id for index in ratios.extreme])
    uses_ratios = not np.isnan(report.current_rewards).all()
    sampled_whole = not any(group.tail_is_cut for group in groups)
    of_itself = own_sampler_notes(what, groups, report.own_distances)
    return [*extreme, *(of_itself or distance_notes(what, ratios, uses_ratios and sampled_whole))]
