"""How well sketches find what exact influence finds, on rollouts of the pocket model.

Samples a pool and two targets from the pocket model, scores the pool exactly, then with `sparse`
sketches of every ratio and dimension asked for, over several seeds. Prints a table, and writes it
with the machine and the settings to benchmarks/results/fidelity.json.

    python benchmarks/fidelity.py --prompts 800 --seeds 5
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cropi.config import VerifiersConfig
from cropi.gradients.extractor import GradientExtractor
from cropi.influence import InfluenceScorer
from cropi.models import Policy, load_policy
from cropi.pocket.tasks import TARGETS, rows
from cropi.prompts.encoding import encode_all
from cropi.rollouts.transformers_engine import TransformersEngine
from cropi.schema import Prompt, Response, RolloutGroup, Sampling, ScoreTable
from cropi.sketches import SparseSketch
from cropi.verifiers.judge import Judge

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)
VALIDATION_PROMPTS = 100


@dataclass(frozen=True)
class Fidelity:
    """Agreement of one sketch with exact influence, averaged over the targets."""

    ratio: float
    dim: int
    seed: int
    precision: float
    spearman: float
    seconds_per_prompt: float


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    policy = load_policy("pocket")
    pool, targets = sample(policy, arguments.prompts, arguments.responses)
    extractor = GradientExtractor(policy.model)
    exact, exact_seconds = timed_score(InfluenceScorer(extractor), pool, targets)
    print(f"{len(pool)} informative prompts, {coordinates(extractor):,} coordinates")
    print(f"exact: {exact_seconds:.4f} s a prompt")
    found = list(measure(extractor, pool, targets, exact, arguments))
    summary = summarise(found)
    print_table(summary)
    about = {
        "prompts": len(pool),
        "targets": {name: sum(g.informative for g in groups) for name, groups in targets.items()},
        "coordinates": coordinates(extractor),
        "exact_seconds_per_prompt": exact_seconds,
        "machine": f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    runs = [asdict(f) for f in found]
    text = json.dumps({"about": about, "summary": summary, "runs": runs}, indent=2)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


def coordinates(extractor: GradientExtractor) -> int:
    """Length of a gradient."""
    return sum(math.prod(shape) for shape in extractor.shapes.values())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=800, help="informative prompts to score")
    parser.add_argument("--responses", type=int, default=8, help="rollouts a prompt")
    parser.add_argument("--seeds", type=int, default=5, help="sketches of each kind")
    parser.add_argument("--dims", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.15, 0.01])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser.parse_args()


def sample(
    policy: Policy, prompts: int, responses: int
) -> tuple[list[RolloutGroup], dict[str, list[RolloutGroup]]]:
    """Return `prompts` informative pool groups, skills taking turns, and all target groups."""
    with Judge(verifiers()) as judge:
        pool: list[RolloutGroup] = []
        source = [to_prompt(row) for row in rows("pool", per_skill=prompts // 4)]
        for start in range(0, len(source), 512):
            part = source[start : start + 512]
            pool += [g for g in collect(policy, judge, part, responses, start) if g.informative]
            if len(pool) >= prompts:
                break
        targets = {}
        for seed, name in enumerate(TARGETS, start=10**6):
            chosen = [to_prompt(r) for r in rows("validation", [name], VALIDATION_PROMPTS)]
            targets[name] = list(collect(policy, judge, chosen, responses, seed))
    return pool[:prompts], targets


def verifiers() -> VerifiersConfig:
    """Return the verifier of pocket answers."""
    return VerifiersConfig(default="exact")


def to_prompt(row: dict) -> Prompt:
    """Return the prompt of a pocket row."""
    return Prompt(row["prompt_id"], row["answer"], row["source"], prompt=row["prompt"])


def collect(
    policy: Policy, judge: Judge, prompts: Sequence[Prompt], responses: int, seed: int
) -> Iterator[RolloutGroup]:
    """Sample and judge one group a prompt."""
    encoded = encode_all(policy.tokenizer, prompts)
    sampled = TransformersEngine(policy).generate(encoded, SAMPLING, responses, seed)
    for prompt, ids, completions in zip(prompts, encoded, sampled, strict=True):
        texts = [policy.tokenizer.decode(c.ids, skip_special_tokens=True) for c in completions]
        verdicts = judge.judge([(prompt, text) for text in texts])
        group = [
            Response(c.ids, c.logprobs, text, c.finish_reason, v.reward, v.status)
            for c, text, v in zip(completions, texts, verdicts, strict=True)
        ]
        yield RolloutGroup(prompt.prompt_id, np.array(ids, dtype=np.int32), group, SAMPLING)


def measure(
    extractor: GradientExtractor,
    pool: Sequence[RolloutGroup],
    targets: dict[str, list[RolloutGroup]],
    exact: ScoreTable,
    arguments: argparse.Namespace,
) -> Iterator[Fidelity]:
    """Score with every sketch asked for."""
    for ratio in arguments.ratios:
        for dim in arguments.dims:
            for seed in range(arguments.seeds):
                sketch = SparseSketch(extractor.shapes, seed, ratio, dim)
                scorer = InfluenceScorer(extractor, sketch)
                table, seconds = timed_score(scorer, pool, targets)
                precision, spearman = agreement(exact, table)
                yield Fidelity(ratio, dim, seed, precision, spearman, seconds)


def timed_score(
    scorer: InfluenceScorer,
    pool: Sequence[RolloutGroup],
    targets: dict[str, list[RolloutGroup]],
) -> tuple[ScoreTable, float]:
    """Return the scores and the seconds they took for each prompt, targets included."""
    start = time.perf_counter()
    table = scorer.score(pool, targets).table
    scored = len(pool) + sum(g.informative for groups in targets.values() for g in groups)
    return table, (time.perf_counter() - start) / scored


def agreement(exact: ScoreTable, sketched: ScoreTable) -> tuple[float, float]:
    """Overlap of the top 10% and rank correlation, averaged over the targets."""
    pairs = [(exact.cosines[name], sketched.cosines[name]) for name in exact.cosines]
    precision = np.mean([top_overlap(a, b) for a, b in pairs])
    return float(precision), float(np.mean([rank_correlation(a, b) for a, b in pairs]))


def top_overlap(truth: np.ndarray, estimate: np.ndarray, share: float = 0.1) -> float:
    """Share of the true top 10% that the estimate's top 10% holds."""
    count = max(1, int(share * len(truth)))
    top = [set(np.argsort(-values, kind="stable")[:count]) for values in (truth, estimate)]
    return len(top[0] & top[1]) / count


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation (no ties among cosines)."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def summarise(found: Sequence[Fidelity]) -> list[dict[str, float]]:
    """Mean and standard deviation over the seeds of each ratio and dimension."""
    summary = []
    for ratio, dim in dict.fromkeys((f.ratio, f.dim) for f in found):
        members = [f for f in found if (f.ratio, f.dim) == (ratio, dim)]
        row = {"ratio": ratio, "dim": dim, "seeds": len(members)}
        for measure in ("precision", "spearman", "seconds_per_prompt"):
            values = np.array([getattr(f, measure) for f in members])
            row[f"{measure}_mean"] = float(values.mean())
            row[f"{measure}_std"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary.append(row)
    return summary


def print_table(summary: Sequence[dict[str, float]]) -> None:
    """Print one line a ratio and dimension."""
    print(f"{'ratio':>6} {'dim':>6}  {'precision@10%':>15}  {'spearman':>15}  {'s/prompt':>9}")
    for row in summary:
        precision = f"{row['precision_mean']:.3f} +- {row['precision_std']:.3f}"
        spearman = f"{row['spearman_mean']:.3f} +- {row['spearman_std']:.3f}"
        seconds = f"{row['seconds_per_prompt_mean']:.4f}"
        line = f"{row['ratio']:>6} {row['dim']:>6}  {precision:>15}  {spearman:>15}"
        print(f"{line}  {seconds:>9}")


if __name__ == "__main__":
    main()
