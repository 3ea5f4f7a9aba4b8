"""What a pass measured as plain arrays, for a file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cropi.gradients.pass_record import ExtractionReport, RatioSummary
from cropi.influence.pool_pass import PoolPass
from cropi.influence.response_influence import ResponseMeasures

RESPONSES = ("dots_DV", "squares_D", "with_sum_D")


def report_arrays(report: ExtractionReport) -> dict[str, np.ndarray]:
    """A report as arrays."""
    ratios = report.ratios
    numbers = [] if ratios is None else [ratios.kl, ratios.effective_share, ratios.mean_ratio]
    counts = [report.tokens, 0 if ratios is None else ratios.tokens]
    return {
        "counts": np.array(counts, np.int64),
        "path": np.array(report.path),
        "statuses": np.array(report.statuses),
        "ratios": np.array(numbers, np.float64),
        "wild": np.array(() if ratios is None else ratios.extreme, np.int64),
        "rewards": report.current_rewards,
        "own_distances": report.own_distances,
    }


def report_of(arrays: Mapping[str, np.ndarray]) -> ExtractionReport:
    """The report that `report_arrays` made arrays of."""
    tokens, counted = arrays["counts"].tolist()
    ratios = None
    if len(arrays["ratios"]):
        kl, share, mean = arrays["ratios"].tolist()
        ratios = RatioSummary(counted, kl, share, tuple(arrays["wild"].tolist()), mean)
    return ExtractionReport(
        tokens,
        str(arrays["path"]),
        arrays["statuses"].tolist(),
        ratios,
        arrays["rewards"],
        arrays["own_distances"],
    )


def pass_arrays(measured: PoolPass) -> dict[str, np.ndarray]:
    """A pass as arrays."""
    arrays = {
        **report_arrays(measured.report),
        "dots": measured.dots_PV,
        "norms": measured.norms_P,
        "lengths": measured.lengths_P,
    }
    if measured.sketches_PD is not None:
        arrays["sketches"] = measured.sketches_PD
    if measured.responses is not None:
        arrays |= {name: getattr(measured.responses, name) for name in RESPONSES}
        arrays["response_tokens"] = np.array(measured.responses.tokens)
    return arrays


def pass_of(arrays: Mapping[str, np.ndarray]) -> PoolPass:
    """The pass that `pass_arrays` made arrays of."""
    responses = None
    if "response_tokens" in arrays:
        dots_DV, squares_D, with_sum_D = (arrays[name] for name in RESPONSES)
        tokens = int(arrays["response_tokens"])
        responses = ResponseMeasures(dots_DV, squares_D, with_sum_D, tokens)
    return PoolPass(
        arrays["dots"],
        arrays["norms"],
        arrays["lengths"],
        report_of(arrays),
        arrays.get("sketches"),
        responses,
    )
