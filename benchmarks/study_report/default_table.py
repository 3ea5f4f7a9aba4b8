"""The default strategy in every suite, one row per regime: what it is worth, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cropi.report.data.study_summary import acceleration, oracle_share, steps_to_level
from cropi.report.kit.number_format import DASH, percent, points
from study_report.bar import ORACLE
from study_report.results import Regime, Results
from study_report.tables import EMPTY, LEVEL, table

WORTH = (
    "regime",
    "seeds",
    "area: full",
    "cropi",
    "oracle",
    "final: full",
    "cropi",
    "oracle",
    "share of the oracle's advantage",
    "untargeted, less full's",
)
COST = (
    "regime",
    f"steps to {LEVEL}: full",
    "cropi",
    "faster in steps",
    "in compute",
    "selection, of training's FLOPs",
    "prompts rolled out",
)
OTHERS = (
    "regime",
    "strategy",
    "seeds",
    "area",
    "final",
    "faster in steps",
    "in compute",
    "area of cropi, less its",
)


def default_tables(results: Results) -> str:
    """Return the default's two tables, that of other strategies if any ran, and what is missing."""
    compared = [r for r in results.regimes.values() if r.shared_seeds(r.method)]
    if not compared:
        return EMPTY
    worth, cost = table(WORTH, map(_worth, compared)), table(COST, map(_cost, compared))
    return "\n\n".join([worth, cost, *_other_strategies(compared), *_unfinished(results)])


def baselines_table(results: Results) -> str:
    """Return a row for every strategy of every study, full data first."""
    begun = [regime for regime in results.regimes.values() if regime.strategies]
    return table(OTHERS, [_other(r, name) for r in begun for name in r.order]) if begun else EMPTY


def _worth(regime: Regime) -> list[str]:
    method, seeds = regime.method, regime.shared_seeds(regime.method)
    means = [
        _mean(regime, strategy, measure, seeds)
        for measure in ("area", "final_targeted")
        for strategy in (regime.baseline, method, ORACLE)
    ]
    return [
        regime.name,
        ", ".join(map(str, seeds)),
        *means,
        oracle_share(regime.oracle_share(method)),
        points(regime.gap(method, "untargeted"), interval=True),
    ]


def _mean(regime: Regime, strategy: str, measure: str, seeds: Sequence[int]) -> str:
    """The mean over the seeds in which the default meets full; of fewer, with their number."""
    values = regime.seed_values(strategy, measure, seeds)
    if not values:
        return DASH
    of = "" if len(values) == len(seeds) else f" ({len(values)} of {len(seeds)} seeds)"
    return percent(float(np.mean(values))) + of


def _cost(regime: Regime) -> list[str]:
    gain, compute = (regime.acceleration(regime.method, axis) for axis in ("steps", "flops"))
    return [
        regime.name,
        f"{gain.baseline:.0f}" if gain and gain.baseline is not None else DASH,
        steps_to_level(gain),
        acceleration(gain),
        acceleration(compute),
        _selection(regime),
        _rolled_out(regime),
    ]


def _selection(regime: Regime) -> str:
    """The FLOPs of rollouts and scoring as a share of training's."""
    flops = {phase: each["flops"] for phase, each in regime.phases(regime.method).items()}
    training = flops.pop("training")
    return percent(sum(flops.values()) / training, 0) if training else DASH


def _rolled_out(regime: Regime) -> str:
    """How many prompts were rolled out for selection, of how many: the fewest to the most."""
    counts = regime.seed_values(regime.method, "sampled", regime.shared_seeds(regime.method))
    if not counts:
        return DASH
    ends = dict.fromkeys((min(counts), max(counts)))
    return f"{' to '.join(f'{n:,}' for n in ends)} of {regime.values['setting']['pool']:,}"


def _other_strategies(compared: Sequence[Regime]) -> list[str]:
    """The table of strategies beside the default in the same studies; empty if there are none."""
    rows = [
        _other(regime, name)
        for regime in compared
        for name in regime.order
        if name not in (regime.baseline, regime.method, ORACLE) and regime.shared_seeds(name)
    ]
    return ["Other strategies in the same studies:", table(OTHERS, rows)] if rows else []


def _other(regime: Regime, name: str) -> list[str]:
    seeds = regime.seeds(name)
    return [
        regime.name,
        name,
        ", ".join(map(str, seeds)),
        *(_mean(regime, name, measure, seeds) for measure in ("area", "final_targeted")),
        *(acceleration(regime.acceleration(name, axis)) for axis in ("steps", "flops")),
        points(regime.ahead(name, "area"), interval=True),
    ]


def _unfinished(results: Results) -> list[str]:
    """Say which studies lack runs that were asked for, have notes, or have no finished run."""
    begun = [r for r in results.regimes.values() if r.strategies]
    absent = [r.name for r in results.regimes.values() if not r.strategies]
    lines = {
        "Unfinished": [f"{r.name} ({', '.join(r.missing)})" for r in begun if r.missing],
        "Note": [f"{r.name}: {'; '.join(r.notes)}" for r in begun if r.notes],
        "Not run yet": [", ".join(absent)] if absent else [],
    }
    return [f"*{word}: {'; '.join(parts)}.*" for word, parts in lines.items() if parts]
