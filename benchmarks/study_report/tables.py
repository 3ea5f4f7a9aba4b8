"""The tables of docs/results.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cropi.report.data.study_summary import acceleration, steps_to_level
from cropi.report.kit.number_format import DASH, percent, percent_interval, points
from cropi.study.measures import LEVELS, MAIN_LEVEL, Axis
from study_report.bar import NOT_RUN, SO_FAR, TARGETS, judged, rows_of
from study_report.results import Regime, Results

PHASES = ("rollouts", "scoring", "training")
COSTS = ("study", "strategy", "FLOPs", *PHASES, "halves of a target agree (cosine), by stage")
EMPTY = f"*{NOT_RUN.capitalize()}.*"
OTHER_LEVELS = [level for level in LEVELS if level != MAIN_LEVEL]
LEVEL = f"{MAIN_LEVEL:.0%}"
MAIN = (
    "strategy",
    "final targeted",
    "untargeted change",
    "area",
    f"steps to {LEVEL}",
    f"faster in steps, {LEVEL}",
    f"in compute, {LEVEL}",
)
MORE = (
    "strategy",
    *(f"in {axis}, {level:.0%}" for axis in ("steps", "compute") for level in OTHER_LEVELS),
    f"in time, {LEVEL}",
)
SETTING = (
    "regime",
    "pool",
    "targeted test prompts",
    "untargeted",
    "steps",
    "prompts x responses per step",
    "share selected",
    "seeds",
)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; its first column is text, the others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def regime_tables(regime: Regime) -> str:
    """Return a regime's two tables, and what is missing of it."""
    if not regime.strategies:
        return EMPTY
    main = table(MAIN, [_main_line(regime, name) for name in regime.order])
    others = [name for name in regime.order if name != regime.baseline]
    more = table(MORE, [_more_line(regime, name) for name in others])
    parts = [main, "Accelerations at other levels, and in measured time:", more]
    return "\n\n".join([*caveats(regime), *parts])


def caveats(regime: Regime) -> list[str]:
    """Say what keeps the numbers from being the last ones, or from being taken at face value."""
    caveats = (("Unfinished", regime.missing), ("Note", regime.notes))
    return [f"*{word}: {'; '.join(lines)}.*" for word, lines in caveats if lines]


def _label(regime: Regime, name: str) -> str:
    if name == regime.baseline:
        return f"{name} (baseline)"
    return f"**{name}**" if name == regime.method else name


def _main_line(regime: Regime, name: str) -> list[str]:
    return [
        _label(regime, name),
        percent_interval(regime.estimate(name, "final")),
        points(regime.estimate(name, "change"), interval=True),
        percent_interval(regime.estimate(name, "area")),
        steps_to_level(regime.acceleration(name)),
        DASH if name == regime.baseline else acceleration(regime.acceleration(name)),
        DASH if name == regime.baseline else acceleration(regime.acceleration(name, "flops")),
    ]


def _more_line(regime: Regime, name: str) -> list[str]:
    axes: tuple[Axis, ...] = ("steps", "flops")
    ratios = [
        acceleration(regime.acceleration(name, axis, level))
        for axis in axes
        for level in OTHER_LEVELS
    ]
    return [_label(regime, name), *ratios, acceleration(regime.acceleration(name, "seconds"))]


def costs_table(results: Results) -> str:
    """Return what each strategy's compute went into, and how sure its target directions were."""
    rows = [
        [regime.name, _label(regime, name), *_shares(regime, name), _reliability(regime, name)]
        for regime in results.regimes.values()
        for name in regime.order
    ]
    return table(COSTS, rows) if rows else EMPTY


def _shares(regime: Regime, name: str) -> list[str]:
    """A strategy's FLOPs, and the shares of them that each phase took."""
    flops = {phase: each["flops"] for phase, each in regime.phases(name).items()}
    total = sum(flops.values())
    shares = [percent(flops.get(phase, 0.0) / total if total else None) for phase in PHASES]
    return [f"{total:.2g}", *shares]


def _reliability(regime: Regime, name: str) -> str:
    """The split-half cosine of each target's direction, stage by stage; means over seeds."""
    cosines = regime.strategies[name].get("reliability", {})
    parts = [
        f"{target} {', '.join(f'{v:.2f}' for v in values)}" for target, values in cosines.items()
    ]
    return "; ".join(parts) or DASH


def setting_table(results: Results) -> str:
    """Return the sizes of every regime that has been run."""
    rows = [_setting_line(r) for r in results.regimes.values() if r.strategies]
    return table(SETTING, rows) if rows else EMPTY


def _setting_line(regime: Regime) -> list[str]:
    sizes = regime.values["setting"]
    tests = {t: [s for s in sizes["test"].values() if s["targeted"] is t] for t in (True, False)}
    prompts = {t: f"{sum(s['prompts'] for s in sets):,}" for t, sets in tests.items()}
    seeds = {len(s["seeds"]) for s in regime.strategies.values()}
    return [
        regime.name,
        f"{sizes['pool']:,}",
        prompts[True],
        prompts[False],
        f"{sizes['stages']} x {sizes['steps_per_stage']}",
        f"{sizes['prompts_per_step']} x {sizes['responses']}",
        f"{sizes['ratio']:.0%}",
        str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}",
    ]


def bar_table(results: Results) -> str:
    """Return every target, what was measured in each regime, and whether it is met."""
    if not any(results.method in regime.strategies for regime in results.regimes.values()):
        return EMPTY
    heads = [f"asked of {results.method}", *results.regimes]
    lines = []
    for target in TARGETS:
        asked = [r for r in results.regimes.values() if target.asks(r.name)]
        by_regime = {r.name: judged(target, r) for r in asked}
        cells = [_verdict(by_regime[n].verdict, by_regime[n].measured) if n in by_regime else ""
                 for n in results.regimes]  # fmt: skip
        lines.append([target.asked, *cells])
    return f"{tally(results)}\n\n{table(heads, lines)}"


def _verdict(verdict: str, measured: str) -> str:
    if verdict == NOT_RUN:
        return NOT_RUN
    shown = f"**{verdict}**" if verdict.startswith("no") else verdict
    return f"{shown}: {measured}"


def tally(results: Results) -> str:
    """Say how many targets are met, and name the others with the regimes where they are not."""
    rows = rows_of(results)
    met = sum(row.verdict.startswith("yes") for row in rows)
    parts = [f"Met: {met} of {len(rows)}."]
    for label, verdict in (("Not met", "no"), ("Not decided", "open")):
        where: dict[str, list[str]] = {}
        for row in rows:
            if row.verdict.removesuffix(SO_FAR) == verdict:
                where.setdefault(row.asked, []).append(row.regime)
        if where:
            named = (f"{asked} ({', '.join(regimes)})" for asked, regimes in where.items())
            parts.append(f"{label}: {'; '.join(named)}.")
    absent = sum(row.verdict == NOT_RUN for row in rows)
    return " ".join([*parts, *([f"Not run yet: {absent}."] if absent else [])])
