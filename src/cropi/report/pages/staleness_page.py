"""The page of `cropi diagnose staleness`."""

from __future__ import annotations

import math

import numpy as np

from cropi.report.kit import charts as draw
from cropi.report.kit.charts import box_of, boxes, rule
from cropi.report.kit.markup import (
    Charts,
    Figure,
    Safe,
    badge,
    figure,
    hint,
    joined,
    pair,
    table,
)
from cropi.report.kit.number_format import DASH, number, percent, with_interval
from cropi.report.pages.diagnosis_page import About, Card, page
from cropi.rollouts.staleness import (
    BINS,
    NARROW,
    SPAN,
    STALE_ESS,
    WIDE,
    PromptStaleness,
    Staleness,
)

SHOWN_PROMPTS = 30
"""Stalest prompts in the page's table; the JSON has all."""
LENGTH_GROUPS = 6
"""Groups of prompts by response length."""
FRESH_COLOUR, STALE_COLOUR = "var(--arm0)", "var(--arm1)"
WORST_COLUMNS = (
    "prompt",
    "effective share",
    "KL per token",
    "KL per response",
    "mean weight",
    "responses",
    "",
)


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
    """Return every figure as (name, value, explanation), for the terminal and the page."""
    tails = report.tails
    quantiles = ", ".join(number(v) for v in tails.quantiles.values())
    return [
        ("effective share of a prompt's responses", _shares(report), "mean over prompts"),
        (
            f"stale prompts (share below {STALE_ESS:.0%})",
            f"{percent(report.stale.mean)}",
            f"{len(report.refresh):,} of {len(report.prompts):,}",
        ),
        ("effective share, all responses", percent(report.ess), "weights of whole responses"),
        ("effective share, all tokens", percent(report.ess_token), "ratios of single tokens"),
        ("KL(beta||pi) per token, nats", with_interval(report.kl_token), "k3 estimator"),
        ("KL(beta||pi) per response, nats", with_interval(report.kl_response), "plain mean"),
        (
            f"tokens outside {NARROW[0]:g} to {NARROW[1]:g}",
            percent(tails.outside_narrow),
            "about PPO's clip range",
        ),
        (
            f"tokens outside {WIDE[0]:g} to {WIDE[1]:g}",
            percent(tails.outside_wide),
            "a factor of two",
        ),
        ("ratios at 1%, 50% and 99%", quantiles, "pi / beta of tokens"),
    ]


def worst_rows(report: Staleness, count: int) -> list[tuple[str, ...]]:
    """Return the stalest prompts as cells under WORST_COLUMNS."""
    return [_row(prompt) for prompt in report.worst[:count]]


def _row(prompt: PromptStaleness) -> tuple[str, ...]:
    return (
        prompt.prompt_id,
        DASH if prompt.ess is None else percent(prompt.ess, 0),
        number(prompt.kl_token, 2),
        number(prompt.kl_response, 2),
        number(prompt.mean_weight, 2),
        str(prompt.responses),
        "stale" if prompt.stale else "",
    )


def _shares(report: Staleness) -> str:
    return with_interval(report.prompt_ess, 100, "%")


def _cards(report: Staleness) -> list[Card]:
    tails = report.tails
    return [
        (percent(report.prompt_ess.mean, 0), "effective share of a prompt's responses", "mean"),
        (percent(report.stale.mean), "stale prompts", f"{len(report.refresh):,} to sample again"),
        (
            percent(report.ess, 0),
            "effective share, all responses",
            f"{report.responses:,} responses",
        ),
        (number(report.kl_token.mean, 2), "nats of KL per token", "k3 estimator, beta to pi"),
        (
            percent(tails.outside_narrow),
            f"tokens outside {NARROW[0]:g} to {NARROW[1]:g}",
            f"{percent(tails.outside_wide)} outside {WIDE[0]:g} to {WIDE[1]:g}",
        ),
        (number(tails.quantiles["50%"], 3), "median token ratio", f"{report.tokens:,} tokens"),
    ]


def _prompts(report: Staleness, charts: Charts) -> Safe:
    shares = charts.add(_share_bars(report), 330, "histogram of effective shares")
    lengths = charts.add(_by_length(report), 330, "effective share by response length")
    note = (
        "A response's weight is its probability under the policy over that under the sampler. "
        "Weights that differ leave fewer effective responses: (Σw)² / Σw² of K. A share near 1 "
        "means that the old group still represents the policy; near 1/K, one response dominates. "
        "Boxes hold the middle half of the prompts, whiskers end at percentiles 5 and 95."
    )
    two = pair(
        figure("Prompts by effective share of their responses", shares),
        figure("By length of the responses", lengths),
    )
    return joined([two, hint(note)])


def _share_bars(report: Staleness) -> Figure:
    shares = [p.ess for p in report.prompts if p.ess is not None]
    counts, edges = np.histogram(shares, bins=20, range=(0, 1))
    centres = [float(c) for c in (edges[:-1] + edges[1:]) / 2]
    colours = [STALE_COLOUR if c < STALE_ESS else FRESH_COLOUR for c in centres]
    words = draw.note("stale to the left", STALE_ESS, 1, yref="paper", xanchor="right")
    layout: Figure = {
        "bargap": 0.04,
        "shapes": [rule(STALE_ESS, "x")],
        "annotations": [words | {"yanchor": "top", "xshift": -4}],
        "xaxis": {"title": "effective share", "tickformat": ".0%", "range": [0, 1.001]},
        "yaxis": {"title": "prompts"},
    }
    hover = "%{y} prompts around %{x:.0%}"
    trace = draw.bars(centres, counts.tolist(), colours, hovertemplate=hover)
    return {"data": [trace], "layout": layout}


def _by_length(report: Staleness) -> Figure:
    measured = [p for p in report.prompts if p.ess is not None]
    lengths = np.array([p.tokens / p.responses for p in measured])
    shares = np.array([p.ess for p in measured], dtype=np.float64)
    cuts = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_GROUPS + 1)))
    group = np.clip(np.searchsorted(cuts, lengths, side="right") - 1, 0, max(0, len(cuts) - 2))
    labels, drawn = [], []
    for index in np.unique(group):
        members = group == index
        box = box_of(shares[members])
        if box is not None:
            labels.append(_span(float(lengths[members].min()), float(lengths[members].max())))
            drawn.append(box)
    trace = boxes(labels, drawn, "var(--s0)", name="effective share", hoverformat=".2f")
    layout: Figure = {
        "showlegend": False,
        "shapes": [rule(STALE_ESS, "y")],
        "xaxis": {"type": "category", "title": "tokens per response", "showgrid": False},
        "yaxis": {"title": "effective share", "tickformat": ".0%", "range": [0, 1.03]},
    }
    return {"data": [trace], "layout": layout}


def _span(low: float, high: float) -> str:
    first, last = f"{low:.3g}", f"{high:.3g}"
    return first if first == last else f"{first} to {last}"


def _ratios(report: Staleness, charts: Charts) -> Safe:
    chart = charts.add(_ratio_bars(report), 320, "histogram of token ratios")
    note = (
        "Ratio of each stored token's probability, policy over sampler, on a doubling scale; the "
        "end bars hold everything beyond. The scale of counts is logarithmic. Numerical noise "
        "shows here too: give the sampler's own checkpoint to see how much of it there is."
    )
    numbers = table(("measure", "value", ""), measures(report))
    return joined([figure("Token ratios", chart), hint(note), numbers])


def _ratio_bars(report: Staleness) -> Figure:
    width = 2 * SPAN / BINS
    centres = [-SPAN + width * (n + 0.5) for n in range(BINS)]
    inside = [math.log2(NARROW[0]) <= c <= math.log2(NARROW[1]) for c in centres]
    colours = [FRESH_COLOUR if i else STALE_COLOUR for i in inside]
    hover = "%{y} tokens at ratio %{customdata:.2f}"
    trace = draw.bars(centres, report.histogram, colours, hovertemplate=hover)
    ticks = list(range(-int(SPAN), int(SPAN) + 1))
    names = ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    layout: Figure = {
        "bargap": 0.04,
        "shapes": [rule(math.log2(edge), "x") for edge in NARROW],
        "xaxis": {"title": "pi / beta", "tickvals": ticks, "ticktext": names},
        "yaxis": {"title": "tokens", "type": "log", "dtick": 1},
    }
    return {"data": [trace | {"customdata": [2.0**c for c in centres]}], "layout": layout}


def _worst(report: Staleness) -> Safe:
    rows = [
        (*cells[:-1], badge(cells[-1], "warn") if cells[-1] else "")
        for cells in worst_rows(report, SHOWN_PROMPTS)
    ]
    note = f"The {len(rows)} of the smallest share, of {len(report.prompts):,}. "
    note += "The JSON beside this page names every prompt to sample again, under `refresh`."
    return joined([table(WORST_COLUMNS, rows), hint(note)])
