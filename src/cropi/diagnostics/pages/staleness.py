"""The page of `cropi diagnose staleness`."""

from __future__ import annotations

import math

import numpy as np

from cropi.diagnostics.pages.frame import About, bars, number, page, rule, share, with_interval
from cropi.report.markup import Charts, Figure, Safe, figure, hint, joined, table, tag
from cropi.report.wording import DASH
from cropi.rollouts.staleness import (
    BINS,
    NARROW,
    SPAN,
    STALE_ESS,
    WIDE,
    PromptStaleness,
    Staleness,
)

SHOWN = 30
"""Worst prompts in the page's table; the JSON has all."""
LENGTHS = 6
"""Groups of prompts by response length."""


def render(report: Staleness, about: About) -> str:
    """Return the page as one HTML document."""
    charts = Charts()
    sections = [
        ("prompts", "Which prompts are stale", _prompts(report, charts)),
        ("ratios", "How token probabilities moved", _ratios(report, charts)),
        ("worst", "The stalest prompts", _worst(report)),
    ]
    return page("staleness", report.verdict, _cards(report), sections, charts, about, report.notes)


def measures(report: Staleness) -> list[tuple[str, str, str]]:
    """Every figure as (name, value, what it says), for the terminal and the page."""
    tails = report.tails
    quantiles = ", ".join(number(v) for v in tails.quantiles.values())
    return [
        ("effective share of a prompt's responses", _shares(report), "mean over prompts"),
        (
            f"stale prompts (share below {STALE_ESS:.0%})",
            f"{share(report.stale.mean)}",
            f"{len(report.refresh):,} of {len(report.prompts):,}",
        ),
        ("effective share, all responses", share(report.ess), "weights of whole responses"),
        ("effective share, all tokens", share(report.ess_token), "ratios of single tokens"),
        ("KL(beta||pi) a token, nats", with_interval(report.kl_token), "k3 estimator"),
        ("KL(beta||pi) a response, nats", with_interval(report.kl_response), "plain mean"),
        (
            f"tokens outside {NARROW[0]:g} to {NARROW[1]:g}",
            share(tails.outside_narrow),
            "about PPO's clip range",
        ),
        (
            f"tokens outside {WIDE[0]:g} to {WIDE[1]:g}",
            share(tails.outside_wide),
            "a factor of two",
        ),
        ("ratios at 1%, 50% and 99%", quantiles, "pi / beta of tokens"),
    ]


def worst_rows(report: Staleness, count: int) -> list[tuple[str, ...]]:
    """The stalest prompts as cells under WORST."""
    return [_row(prompt) for prompt in report.worst[:count]]


WORST = ("prompt", "effective share", "KL a token", "KL a response", "mean weight", "responses", "")


def _row(prompt: PromptStaleness) -> tuple[str, ...]:
    return (
        prompt.prompt_id,
        DASH if prompt.ess is None else share(prompt.ess, 0),
        number(prompt.kl_token, 2),
        number(prompt.kl_response, 2),
        number(prompt.mean_weight, 2),
        str(prompt.responses),
        "stale" if prompt.stale else "",
    )


def _shares(report: Staleness) -> str:
    return with_interval(report.prompt_ess, 100, "%")


def _cards(report: Staleness) -> list[tuple[str, str, str]]:
    tails = report.tails
    return [
        (share(report.prompt_ess.mean, 0), "effective share of a prompt's responses", "mean"),
        (share(report.stale.mean), "stale prompts", f"{len(report.refresh):,} to sample again"),
        (share(report.ess, 0), "effective share, all responses", f"{report.responses:,} responses"),
        (number(report.kl_token.mean, 2), "nats of KL a token", "k3 estimator, beta to pi"),
        (
            share(tails.outside_narrow),
            f"tokens outside {NARROW[0]:g} to {NARROW[1]:g}",
            f"{share(tails.outside_wide)} outside {WIDE[0]:g} to {WIDE[1]:g}",
        ),
        (number(tails.quantiles["50%"], 3), "median token ratio", f"{report.tokens:,} tokens"),
    ]


def _prompts(report: Staleness, charts: Charts) -> Safe:
    pair = [
        figure(
            "Prompts by effective share of their responses",
            charts.add(_share_bars(report), 330, "histogram of effective shares"),
        ),
        figure(
            "By length of the responses",
            charts.add(_by_length(report), 330, "effective share by response length"),
        ),
    ]
    told = (
        "A response's weight is its probability under the policy over that under the sampler. "
        "Weights that differ leave fewer effective responses: (Σw)² / Σw² of K. A share near 1 "
        "means the old group still speaks for the policy; near 1/K, one response owns it. Boxes "
        "hold the middle half of the prompts, whiskers end at percentiles 5 and 95."
    )
    return joined([tag("div", *pair, class_="pair"), hint(told)])


def _share_bars(report: Staleness) -> Figure:
    shares = [p.ess for p in report.prompts if p.ess is not None]
    counts, edges = np.histogram(shares, bins=20, range=(0, 1))
    centres = [float(c) for c in (edges[:-1] + edges[1:]) / 2]
    colours = ["var(--arm1)" if c < STALE_ESS else "var(--arm0)" for c in centres]
    line, note = rule(STALE_ESS, "x", "stale to the left")
    note[0] |= {"xanchor": "right", "xshift": -4}
    trace = bars(centres, counts.tolist(), colours, hover="%{y} prompts around %{x:.0%}")
    layout: Figure = {
        "bargap": 0.04,
        "shapes": [line],
        "annotations": note,
        "xaxis": {"title": "effective share", "tickformat": ".0%", "range": [0, 1.001]},
        "yaxis": {"title": "prompts"},
    }
    return {"data": [trace], "layout": layout}


def _by_length(report: Staleness) -> Figure:
    known = [p for p in report.prompts if p.ess is not None]
    lengths = np.array([p.tokens / p.responses for p in known])
    shares = np.array([p.ess for p in known], dtype=np.float64)
    cuts = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)))
    place = np.clip(np.searchsorted(cuts, lengths, side="right") - 1, 0, max(0, len(cuts) - 2))
    labels, fives = [], []
    for bin_ in np.unique(place):
        own = place == bin_
        labels.append(_span(float(lengths[own].min()), float(lengths[own].max())))
        fives.append(np.quantile(shares[own], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist())
    names = ("lowerfence", "q1", "median", "q3", "upperfence")
    trace: Figure = {"type": "box", "x": labels, "hoverformat": ".2f", "name": "effective share"}
    trace |= {name: [five[n] for five in fives] for n, name in enumerate(names)}
    trace |= {"line": {"color": "var(--text)@0.75", "width": 1.4}, "fillcolor": "var(--s0)@0.6"}
    layout: Figure = {
        "showlegend": False,
        "shapes": [rule(STALE_ESS, "y")[0]],
        "xaxis": {"type": "category", "title": "tokens a response", "showgrid": False},
        "yaxis": {"title": "effective share", "tickformat": ".0%", "range": [0, 1.03]},
    }
    return {"data": [trace], "layout": layout}


def _span(low: float, high: float) -> str:
    first, last = f"{low:.3g}", f"{high:.3g}"
    return first if first == last else f"{first} to {last}"


def _ratios(report: Staleness, charts: Charts) -> Safe:
    chart = charts.add(_ratio_bars(report), 320, "histogram of token ratios")
    cells = [(name, value, told) for name, value, told in measures(report)]
    told = (
        "Ratio of each stored token's probability, policy over sampler, on a doubling scale; the "
        "end bars hold everything beyond. The scale of counts is logarithmic. Numerical noise "
        "shows here too: give the sampler's own checkpoint to see how much of it there is."
    )
    return joined(
        [figure("Token ratios", chart), hint(told), table(("measure", "value", ""), cells)]
    )


def _ratio_bars(report: Staleness) -> Figure:
    width = 2 * SPAN / BINS
    centres = [-SPAN + width * (n + 0.5) for n in range(BINS)]
    inside = [math.log2(NARROW[0]) <= c <= math.log2(NARROW[1]) for c in centres]
    colours = ["var(--arm0)" if i else "var(--arm1)" for i in inside]
    shown = [2.0**c for c in centres]
    trace = bars(centres, report.histogram, colours, hover="%{y} tokens at ratio %{customdata:.2f}")
    ticks = range(-int(SPAN), int(SPAN) + 1)
    names = ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    lines = [rule(math.log2(edge), "x")[0] for edge in NARROW]
    layout: Figure = {
        "bargap": 0.04,
        "shapes": lines,
        "xaxis": {"title": "pi / beta", "tickvals": list(ticks), "ticktext": names},
        "yaxis": {"title": "tokens", "type": "log", "dtick": 1},
    }
    return {"data": [trace | {"customdata": shown}], "layout": layout}


def _worst(report: Staleness) -> Safe:
    rows = [
        (*cells[:-1], tag("span", cells[-1], class_="badge warn") if cells[-1] else "")
        for cells in worst_rows(report, SHOWN)
    ]
    told = f"The {len(rows)} of the smallest share, of {len(report.prompts):,}. "
    told += "The JSON beside this page names every prompt to sample again, under `refresh`."
    return joined([table(WORST, rows), hint(told)])
