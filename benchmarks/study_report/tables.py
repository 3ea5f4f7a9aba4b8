"""The tables of docs/results.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cropi.report.wording import DASH
from cropi.study.measures import MAIN_LEVEL
from cropi.study.summary import NEVER, points, ratio, share, steps_to
from study_report.bar import NOT_RUN, TARGETS, judged, rows_of
from study_report.results import Regime, Results

EMPTY = f"*{NOT_RUN.capitalize()}.*"
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
    "in steps, 80%",
    "in steps, 90%",
    "in compute, 80%",
    "in compute, 90%",
    f"in time, {LEVEL}",
)
SETTING = (
    "regime",
    "pool",
    "targeted test prompts",
    "untargeted",
    "steps",
    "prompts x responses a step",
    "share selected",
    "seeds",
)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; its first column is text, the others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def regime_tables(regime: Regime, method: str) -> str:
    """Return a regime's two tables, and what is missing of it."""
    if not regime.strategies:
        return EMPTY
    main = table(MAIN, [_main_line(regime, name, method) for name in regime.order])
    others = [name for name in regime.order if name != regime.baseline]
    more = table(MORE, [_more_line(regime, name, method) for name in others])
    parts = [main, "The same at other levels, and in measured time:", more]
    return "\n\n".join([*([unfinished(regime)] if regime.missing else []), *parts])


def unfinished(regime: Regime) -> str:
    """Say that the numbers are not the last ones."""
    return f"*Unfinished: {'; '.join(regime.missing)}.*"


def _label(regime: Regime, name: str, method: str) -> str:
    if name == regime.baseline:
        return f"{name} (baseline)"
    return f"**{name}**" if name == method else name


def _main_line(regime: Regime, name: str, method: str) -> list[str]:
    return [
        _label(regime, name, method),
        share(regime.estimate(name, "final")),
        points(regime.estimate(name, "change"), interval=True),
        share(regime.estimate(name, "area")),
        steps_to(regime.speed(name)),
        DASH if name == regime.baseline else ratio(regime.speed(name)),
        DASH if name == regime.baseline else ratio(regime.speed(name, "flops")),
    ]


def _more_line(regime: Regime, name: str, method: str) -> list[str]:
    asked = (("steps", 0.80), ("steps", 0.90), ("flops", 0.80), ("flops", 0.90))
    speeds = [ratio(regime.speed(name, axis, level)) for axis, level in asked]  # type: ignore[arg-type]
    return [_label(regime, name, method), *speeds, ratio(regime.speed(name, "seconds"))]


def setting_table(results: Results) -> str:
    """Return the sizes of every regime that has been run."""
    rows = [_setting_line(r) for r in results.regimes.values() if r.strategies]
    return table(SETTING, rows) if rows else EMPTY


def _setting_line(regime: Regime) -> list[str]:
    found = regime.values["setting"]
    tests = {t: [s for s in found["test"].values() if s["targeted"] is t] for t in (True, False)}
    prompts = {t: f"{sum(s['prompts'] for s in sets):,}" for t, sets in tests.items()}
    seeds = {len(s["seeds"]) for s in regime.strategies.values()}
    return [
        regime.name,
        f"{found['pool']:,}",
        prompts[True],
        prompts[False],
        f"{found['stages']} x {found['steps_per_stage']}",
        f"{found['prompts_per_step']} x {found['generations']}",
        f"{found['ratio']:.0%}",
        str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}",
    ]


def bar_table(results: Results, method: str) -> str:
    """Return every target, what was measured in each regime, and whether it is met."""
    if not any(method in regime.strategies for regime in results.regimes.values()):
        return EMPTY
    heads = ["asked of " + method, *results.regimes]
    lines = []
    for target in TARGETS:
        asked = [r for r in results.regimes.values() if target.asks(r.name)]
        found = {r.name: judged(target, r, method) for r in asked}
        cells = [_verdict(found[n].verdict, found[n].measured) if n in found else ""
                 for n in results.regimes]  # fmt: skip
        lines.append([target.asked, *cells])
    return f"{tally(results, method)}\n\n{table(heads, lines)}"


def _verdict(verdict: str, measured: str) -> str:
    if verdict == NOT_RUN:
        return NOT_RUN
    said = f"**{verdict}**" if verdict.startswith("no") else verdict
    return f"{said}: {measured}"


def tally(results: Results, method: str) -> str:
    """Say how many targets are met, and name those that are not."""
    rows = rows_of(results, method)
    met = sum(row.verdict.startswith("yes") for row in rows)
    left = [r for r in rows if not r.verdict.startswith("yes")]
    said = f"Met: {met} of {len(rows)}."
    for kind, word in (("Not met", "no"), ("Not decided", "open"), ("Not run yet", NOT_RUN)):
        named = [f"{r.asked} ({r.regime})" for r in left if _kind(r.verdict) == word]
        said += f" {kind}: {len(named) if word == NOT_RUN else '; '.join(named)}." if named else ""
    return said


def _kind(verdict: str) -> str:
    return verdict.removesuffix(" so far")


def legend() -> str:
    """Say what dashes and words in the tables mean."""
    return f"`{NEVER}`: the level was not reached; `{DASH}`: not measured, or without meaning."
