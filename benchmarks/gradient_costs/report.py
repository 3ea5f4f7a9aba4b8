"""From measurements to a table, a file and the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gradient_costs.ours import DEFAULT_SKETCH, FACTORED_SKETCH
from gradient_costs.profiles import show

Results = dict[str, Any]

BARS = {
    "exact_over_floor": ("<=", 1.2),
    "shared_prefix_over_floor": ("<=", 0.75),
    "naive_over_ours_prompt": (">=", 2.5),
    "naive_over_ours_pool": (">=", 4.5),
    "bergson_over_ours": (">=", 1.5),
    "precision_at_10": (">=", 0.93),
    "memory_excess_over_largest_layer": ("<=", 1.0),
}
"""What is to be reached, as far as one number says it."""


def finish(results: Results, path: Path) -> None:
    """Complete the results, print the tables, write the file; the summary is the last line."""
    results["summary"] = summary = summarise(results)
    print_times(results)
    for name, rows in results["profiles"].items():
        show(name, rows)
    print_summary(summary)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
    print(json.dumps(summary))


def summarise(results: Results) -> Results:
    """The figures that the bar names, and what they rest on."""
    times, default = results["times"], f"sketch_{results['about']['default_sketch']}"
    measured, sketches = results["memory"], results["precision"]["sketches"]
    name = f"{results['about']['default_sketch']}@{results['about']['dim']}"

    def over(above: str, below: str, plus: str | None = None) -> float:
        more = times[plus]["median"] if plus else 0.0
        return float((times[above]["median"] + more) / times[below]["median"])

    return {
        "exact_over_floor": over("exact", "floor"),
        "shared_prefix_over_floor": over("exact_shared", "floor"),
        "sketch_over_floor": over(default, "floor"),
        "targets_over_floor": over("targets", "floor"),
        "naive_over_ours_prompt": over("naive", "exact_shared"),
        "naive_projected_over_ours_prompt": over("naive", "exact_shared", plus="naive_projection"),
        "naive_over_ours_pool": results["pool"]["naive_over_ours"],
        "bergson_over_ours": peer_over(results, "bergson", equivalent(results, "bergson")),
        "bergson_over_default_sketch": peer_over(results, "bergson", default),
        "bergson_over_exact": peer_over(results, "bergson", "exact"),
        "dattri_over_ours": peer_over(results, "dattri", equivalent(results, "dattri")),
        "compared_with_bergson": equivalent(results, "bergson"),
        "precision_at_10": sketches[name]["mean"],
        "precision": {
            **{key: value["mean"] for key, value in sketches.items()},
            **results["precision"]["peers"],
        },
        "peak_memory_over_model": measured["peak_over_model"],
        "memory_excess_over_largest_layer": measured["excess_over_largest_layer"],
        "floor_efficiency": efficiency(results),
        "tokens_per_second": tokens_per_second(results),
        "spread": {name: [t["min"], t["median"], t["max"]] for name, t in times.items()},
        "scaling": results.get("scaling"),
        "seconds": results["seconds"],
    }


def equivalent(results: Results, peer: str) -> str:
    """Our fastest sketch that is at least as precise as the peer's, at the same dimension.

    Precision is that of the true top 10% over all parameters, in this very run.
    """
    about, precision = results["about"], results["precision"]
    least = (precision["peers"].get(peer) or {}).get("against_all_parameters", 0.0)
    for method in (FACTORED_SKETCH, DEFAULT_SKETCH):
        if precision["sketches"][f"{method}@{about['dim']}"]["mean"] >= least:
            return f"sketch_{method}"
    return f"sketch_{DEFAULT_SKETCH}"


def peer_over(results: Results, peer: str, contender: str) -> float | None:
    """A peer's seconds per unpacked prompt+response token over ours; None without the peer."""
    times = results["times"]
    if peer not in times:
        return None
    return float(times[peer]["median"] * results["tokens"]["unpacked"] / times[contender]["median"])


def efficiency(results: Results) -> float:
    """The floor's FLOP/s over those of a large matmul."""
    rate = {n: results["flops"][n] / results["times"][n]["median"] for n in ("floor", "matmul")}
    return float(rate["floor"] / rate["matmul"])


def tokens_per_second(results: Results) -> dict[str, float]:
    """Unpacked prompt+response tokens per second of all contenders that handle whole prompts."""
    tokens, rates = results["tokens"]["unpacked"], {}
    for name, time in results["times"].items():
        if name not in ("matmul", "naive_projection"):
            units = 1.0 if name in results["peers"] else tokens
            rates[name] = units / time["median"]
    return rates


def print_times(results: Results) -> None:
    """One line per contender: seconds per prompt, spread, ratio to the floor, tokens per second."""
    floor, tokens = results["times"]["floor"]["median"], results["tokens"]["unpacked"]
    speed = tokens_per_second(results)
    print(f"\n{'':<18}{'s/prompt':>9}{'min':>9}{'max':>9}{'reps':>5}{'/floor':>8}{'tokens/s':>10}")
    for name, rate in speed.items():
        time = results["times"][name]
        scale = tokens if name in results["peers"] else 1.0
        median, low, high = (scale * time[key] for key in ("median", "min", "max"))
        line = f"{name:<18}{median:>9.3f}{low:>9.3f}{high:>9.3f}{time['repetitions']:>5}"
        print(f"{line}{median / floor:>8.2f}{rate:>10.0f}")
    hashing = results["times"]["naive_projection"]["median"]
    print(f"naive projection of one gradient: {hashing:.3f} s on top")
    matmul = results["flops"]["matmul"] / results["times"]["matmul"]["median"]
    print(
        f"large matmul: {matmul / 1e9:,.0f} GFLOP/s; the floor, {results['micro_batch']} rows a "
        f"micro-batch, {results['floor_attention']} attention, reaches {efficiency(results):.0%}"
    )
    print(f"pool: {results['pool']['kind']}; {results['pool']['informative']} informative prompts "
          f"of {results['pool']['prompts']}")  # fmt: skip
    for name, peer in results["peers"].items():
        print(f"{name}: {peer.get('missing') or peer}")


def print_summary(summary: Results) -> None:
    """One line a figure: what it is, what is asked, and whether it is reached."""
    print(f"\n{'':<36}{'measured':>10}{'bar':>10}")
    for name, value in summary.items():
        if isinstance(value, dict | list | str):
            continue
        shown = "-" if value is None else f"{value:.3f}"
        print(f"{name:<36}{shown:>10}{bar_of(name, value):>18}")


def bar_of(name: str, value: float | None) -> str:
    """The bar of a figure and whether it is reached; nothing where there is none."""
    if name not in BARS:
        return ""
    sense, bar = BARS[name]
    if value is None:
        return f"{sense} {bar}"
    reached = value <= bar if sense == "<=" else value >= bar
    return f"{sense} {bar} {'yes' if reached else 'NO'}"
