"""Whether a prompt's own standard error says how much its influence changes with other responses.

Each prompt has two independent draws of responses, scored against the same targets. If errors s are
right, z = (U - U') / sqrt(s^2 + s'^2) is about standard normal, and prompts with large errors are
those that differ. Also measured: what the errors cost, and whether prompts that look good for sure
are better, by the other draw, than prompts that look as good with a large error. Writes
benchmarks/results/response_errors.json, one entry for each `--name`.

    python benchmarks/response_errors.py                       # pocket, 40 prompts per skill
    python benchmarks/response_errors.py --name chain --model DIR --draws A.parquet B.parquet \
        --target sum=sum.parquet --target hop=hop.parquet
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import cropi
from cropi.cli.printing import print_table
from cropi.config import RolloutsConfig
from cropi.estimation.noise import noise_scale
from cropi.pocket.tasks import SKILLS, TARGETS
from cropi.pocket.tasks import rows as pocket_rows
from cropi.schema import InfluenceEstimate, Prompt, RolloutGroup
from cropi.store.files import write_json

RESULTS = Path(__file__).parent / "results" / "response_errors.json"
RESPONSES = 6
TOP = 0.2
"""Share of the prompts that look best."""
FLOOR = 3.0
"""Errors that a cosine must exceed to be clear of noise."""
ROUNDS = 3
"""Times that scoring is timed with and without errors, alternately; the least counts."""

Groups = list[RolloutGroup]
Array = NDArray[np.float64]


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    model, draws, targets = pocket(arguments.prompts) if not arguments.draws else given(arguments)
    draws = both_informative(draws, arguments.most)
    one, other = (cropi.score(model, d, targets, per_response=True).estimate for d in draws)
    figures: dict[str, Any] = {
        "prompts": len(draws[0]),
        "responses": RESPONSES,
        "targets": {name: calibration(one, other, name) for name in targets},
        "cost": costs(model, draws[0], targets),
    }
    rows = [[n, *(f"{v:.3f}" for v in each.values())] for n, each in figures["targets"].items()]
    print_table(["target", *next(iter(figures["targets"].values()))], rows)
    print(figures["cost"])
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, earlier | {arguments.name: figures})


def pocket(prompts: int) -> tuple[Any, list[Groups], dict[str, Groups]]:
    """The pocket model, two draws of its pool, and its targets."""
    both = sample("pool", list(SKILLS), prompts, 2 * RESPONSES)
    halves = (slice(0, RESPONSES), slice(RESPONSES, None))
    draws = [[replace(g, responses=g.responses[half]) for g in both] for half in halves]
    targets = {name: sample("validation", [name], 60, 16) for name in TARGETS}
    return cropi.load_model("pocket"), draws, targets


def sample(split: str, skills: Sequence[str], per_skill: int, responses: int) -> Groups:
    """Rollouts of pocket's prompts."""
    prompts = [Prompt(**row) for row in pocket_rows(split, skills, per_skill, seed=1)]
    settings = RolloutsConfig(responses=responses, max_new_tokens=8)
    with TemporaryDirectory() as folder:
        out = Path(folder, "rollouts.parquet")
        return cropi.rollout("pocket", prompts, out, settings, verifier="exact", seed=1)


def given(arguments: argparse.Namespace) -> tuple[Any, list[Groups], dict[str, Groups]]:
    """The same from files."""
    targets = dict(pair.split("=", 1) for pair in arguments.target)
    return (
        cropi.load_model(arguments.model),
        [cropi.read_rollouts(path) for path in arguments.draws],
        {name: cropi.read_rollouts(path) for name, path in targets.items()},
    )


def both_informative(draws: list[Groups], most: int) -> list[Groups]:
    """A random part of the prompts that have a gradient in both draws, in one order."""
    first, second = ({g.prompt_id: g for g in draw if g.informative} for draw in draws)
    ids = sorted(first.keys() & second.keys())
    chosen = np.random.default_rng(0).permutation(len(ids))[:most]
    return [[draw[ids[place]] for place in chosen] for draw in (first, second)]


def calibration(one: InfluenceEstimate, other: InfluenceEstimate, name: str) -> dict[str, float]:
    """How errors compare with the difference of two draws."""
    mean, again = one.mean[name].astype(float), other.mean[name].astype(float)
    variance = one.standard_error[name] ** 2 + other.standard_error[name] ** 2
    difference = mean - again
    z = difference / np.sqrt(variance)
    scatter = 2 * noise_scale(mean) ** 2
    return {
        "correlation of draws": float(np.corrcoef(mean, again)[0, 1]),
        "rms error": float(np.sqrt(np.mean(difference**2) / 2)),
        "median own error": float(np.median(np.sqrt(variance / 2))),
        "rms z": float(np.sqrt(np.mean(z**2))),
        "|z| > 2": float(np.mean(np.abs(z) > 2)),
        "|z| > 2, pooled": float(np.mean(difference**2 > 4 * scatter)),
        "rank correlation": rank_correlation(variance, difference**2),
        **sure_and_unsure(mean, one.standard_error[name], again),
    }


def sure_and_unsure(mean: Array, error: Array, again: Array) -> dict[str, float]:
    """Of prompts that look best and are above the pool's noise: the other draw's mean cosine."""
    top = np.argsort(-mean)[: max(1, int(TOP * len(mean)))]
    top = top[mean[top] > FLOOR * noise_scale(mean)]
    sure = mean[top] > FLOOR * error[top]
    return {
        "sure": float(again[top][sure].mean()) if sure.any() else 0.0,
        "unsure": float(again[top][~sure].mean()) if (~sure).any() else 0.0,
        "share unsure": float((~sure).mean()) if len(top) else 0.0,
    }


def rank_correlation(left: Array, right: Array) -> float:
    """Spearman's, without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def costs(model: Any, pool: Groups, targets: dict[str, Groups]) -> dict[str, float]:
    """Tokens and seconds of scoring with errors, relative to scoring without."""
    seconds: dict[bool, float] = {}
    tokens: dict[bool, int] = {}
    for _ in range(ROUNDS):
        for per_response in (False, True):
            start = time.process_time()
            tokens[per_response] = cropi.score(
                model, pool, targets, per_response=per_response
            ).tokens
            spent = time.process_time() - start
            seconds[per_response] = min(spent, seconds.get(per_response, spent))
    return {
        "tokens": tokens[True] / tokens[False],
        "processor time": seconds[True] / seconds[False],
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--name", default="pocket")
    parser.add_argument("--prompts", type=int, default=40, help="of each of pocket's skills")
    parser.add_argument("--most", type=int, default=300, help="prompts that are compared")
    parser.add_argument("--model")
    parser.add_argument("--draws", nargs=2, metavar="FILE")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
