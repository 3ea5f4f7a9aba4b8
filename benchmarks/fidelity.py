"""How well sketches find what exact influence finds, on rollouts of the pocket model.

Samples a pool and targets from the pocket model, then does what `cropi diagnose fidelity` does; the
same options say which sketches. Prints the table and the verdict, and writes the numbers to
benchmarks/results/fidelity.json. With `--hard` every skill that the model half knows is a target of
its own, where the pool's best tenth holds much besides it; written to fidelity_hard.json.

    python benchmarks/fidelity.py --prompts 800 --seeds 5
    python benchmarks/fidelity.py --hard --sketches adaptive sparse --dims 8192 --ratios 1 0.15
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import cropi
from cropi.cli.printing import make_reporter, print_table
from cropi.config import EngineChoice, RolloutsConfig
from cropi.diagnostics import diagnose_fidelity
from cropi.diagnostics.diagnosis_settings import FidelitySettings
from cropi.pocket.tasks import SKILLS, TARGETS
from cropi.pocket.tasks import rows as pocket_rows
from cropi.policy.loading import Policy
from cropi.report.pages.diagnosis_page import numbers
from cropi.report.pages.fidelity_page import COLUMNS, rows
from cropi.schema import Prompt, RolloutGroup
from cropi.store.files import write_json

RESULTS = Path(__file__).parent / "results"
DEFAULTS = FidelitySettings()
SAMPLED = 3
"""Pool prompts sampled for each one wanted: about half have a gradient."""
VALIDATION_PROMPTS = 100
LEAST_INFORMATIVE = 10
"""Validation prompts with a gradient that a hard target needs for a direction of its own."""


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    policy = cropi.load_policy("pocket")
    skills = list(SKILLS)
    pool = sample(policy, "pool", skills, SAMPLED * arguments.prompts // len(skills), arguments)
    targets = {
        name: sample(policy, "validation", [name], VALIDATION_PROMPTS, arguments)
        for name in (SKILLS if arguments.hard else TARGETS)
    }
    if arguments.hard:
        targets = {
            name: groups
            for name, groups in targets.items()
            if sum(group.informative for group in groups) >= LEAST_INFORMATIVE
        }
    settings = FidelitySettings(
        sketches=tuple(arguments.sketches),
        dims=tuple(arguments.dims),
        ratios=tuple(arguments.ratios),
        seeds=arguments.seeds,
        max_prompts=arguments.prompts,
        batch_tokens=2048,
    )
    with make_reporter().phase("fidelity") as bar:
        report = diagnose_fidelity(
            pool,
            targets,
            policy,
            settings=settings,
            progress=lambda phase, done, total: bar.update(done, total, note=phase),
        )
        bar.note = f"{len(report.sketches)} sketches, {report.prompts} prompts"
    print_table(list(COLUMNS), rows(report))
    print(report.verdict)
    machine = f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    about = {"model": "pocket", "machine": machine}
    results = RESULTS / ("fidelity_hard.json" if arguments.hard else "fidelity.json")
    write_json(results, numbers(report, about))
    print(f"written to {results}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hard", action="store_true", help="every skill a target of its own")
    parser.add_argument("--prompts", type=int, default=800, help="informative prompts to score")
    parser.add_argument("--responses", type=int, default=8, help="rollouts per prompt")
    parser.add_argument("--seeds", type=int, default=5, help="sketches of each kind")
    parser.add_argument("--sketches", nargs="+", default=DEFAULTS.sketches)
    parser.add_argument("--dims", type=int, nargs="+", default=DEFAULTS.dims)
    parser.add_argument("--ratios", type=float, nargs="+", default=DEFAULTS.ratios)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args()


def sample(
    policy: Policy, split: str, skills: list[str], per_skill: int, arguments: argparse.Namespace
) -> list[RolloutGroup]:
    """Return judged rollouts of a split of pocket tasks, skills taking turns."""
    prompts = [
        Prompt(row["prompt_id"], row["answer"], row["source"], prompt=row["prompt"])
        for row in pocket_rows(split, skills, per_skill)
    ]
    engine = EngineChoice.of(batch_size=512)
    settings = RolloutsConfig(responses=arguments.responses, max_new_tokens=12, engine=engine)
    with TemporaryDirectory() as folder, make_reporter().phase(f"rollouts {split}") as bar:
        groups = cropi.rollout(
            policy,
            prompts,
            Path(folder) / "rollouts.parquet",
            verifier="exact",
            settings=settings,
            progress=bar.update,
        )
        bar.note = f"{len(groups)} prompts, {sum(g.informative for g in groups)} informative"
    return groups


if __name__ == "__main__":
    main()
