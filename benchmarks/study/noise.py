"""Two kinds of label noise for pocket: wrong answers, and a verifier that errs.

- `flipped` is a verifier that judges exactly and then inverts 30% of its verdicts on pool prompts:
  always the same ones, as a faulty grader does, not at random each time.
- This script writes a config's pool with 30% of its answers wrong. A wrong answer is the start
  model's own most frequent wrong response, as in data that a model labelled: an answer that the
  model never gives would do no harm, because its prompt earns no reward.

    python benchmarks/study/noise.py --out FILE [--config pocket] [--share 0.3] [--responses 16]

What the model samples may differ by rounding on another machine, so the study's file is kept
beside its config. The verifier needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cropi.errors import InputError
from cropi.pocket.tasks import split_of
from cropi.schema import Prompt, derive_seed
from cropi.verifiers.exact import ExactVerifier

if TYPE_CHECKING:
    from cropi.config import RunConfig

FLIP_SHARE = 0.3
"""Share of the (pool prompt, response) pairs whose verdict `flipped` inverts."""

_FLIP_KEY = b"cropi-pocket-flip-v1"


def flipped(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Judge as `exact` does, then flip `FLIP_SHARE` of the verdicts on pool prompts.

    A keyed hash of prompt and response says which: the same in every process and order. Prompts
    of the other splits are judged as they are. In TRL's signature; rewards are 0.0 or 1.0.
    """
    return [
        _flipped(prompt, completion.strip(), right)
        for prompt, completion, right in zip(prompts, completions, answer, strict=True)
    ]


def _flipped(prompt: str, response: str, answer: str) -> float:
    reward = ExactVerifier()(Prompt("", answer, "", prompt), response)
    inverted = split_of(prompt) == "pool" and _uniform(prompt, response) < FLIP_SHARE
    return 1.0 - reward if inverted else reward


def _uniform(prompt: str, response: str) -> float:
    """A number in [0, 1), uniform over pairs and always the same for one pair."""
    text = json.dumps([prompt, response])
    digest = blake2b(text.encode(), key=_FLIP_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def commonest_wrong(
    answers: Mapping[str, str], sampled: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The most frequent wrong response to each prompt that has one; ties go to the first by text.

    Args:
        answers: prompt id -> right answer.
        sampled: prompt id -> texts of its responses; empty ones are no answer and do not count.

    Returns:
        Prompt id -> wrong response, in the order of `answers`.
    """
    wrong = {}
    for prompt_id, answer in answers.items():
        texts = (text.strip() for text in sampled[prompt_id])
        counts = Counter(text for text in texts if text not in ("", answer))
        if counts:
            wrong[prompt_id] = min(counts, key=lambda text: (-counts[text], text))
    return wrong


def even_shares(total: int, capacities: Mapping[str, int]) -> dict[str, int]:
    """Split `total` as evenly as capacities allow: what one cannot take goes to the others."""
    assert total <= sum(capacities.values()), "more than all capacities together"
    shares = {}
    # Smallest capacity first: what it cannot take is spread over those after it.
    names = sorted(capacities, key=lambda name: capacities[name])
    for position, name in enumerate(names):
        shares[name] = min(capacities[name], total // (len(names) - position))
        total -= shares[name]
    return {name: shares[name] for name in capacities}


def with_wrong_answers(
    prompts: Sequence[Prompt], wrong: Mapping[str, str], share: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of the prompts in their order, `share` of them with their answer in `wrong`.

    Skills have equal shares of wrong answers, as far as they have enough prompts in `wrong`.

    Args:
        prompts: of pocket, with `extra["skill"]` and `extra["level"]`.
        wrong: prompt id -> wrong answer, for the prompts that may be chosen.
        share: of all prompts, in [0, 1].
        seed: decides which prompts are chosen.

    Returns:
        Rows as `cropi.pocket.tasks.rows` gives them, with `wrong` (bool) in `extra`.

    Raises:
        InputError: `share` is out of range, or `wrong` holds fewer prompts.
    """
    total = round(share * len(prompts))
    if not 0 <= total <= len(wrong):
        raise InputError(
            f"share {share} asks for {total} wrong answers, and {len(wrong)} of {len(prompts)} "
            "prompts have one; give a share from 0 to that, or sample more responses"
        )
    candidates: dict[str, list[str]] = {}
    for prompt in prompts:
        ids = candidates.setdefault(prompt.extra["skill"], [])
        ids += [prompt.prompt_id] * (prompt.prompt_id in wrong)
    capacities = {skill: len(ids) for skill, ids in candidates.items()}
    shares = even_shares(total, capacities)
    chosen: set[str] = set()
    for skill, ids in candidates.items():
        chosen |= set(random.Random(derive_seed(seed, "noise", skill)).sample(ids, shares[skill]))
    return [
        _row(prompt, wrong[prompt.prompt_id] if prompt.prompt_id in chosen else None)
        for prompt in prompts
    ]


def _row(prompt: Prompt, wrong: str | None) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.prompt,
        "answer": prompt.answer if wrong is None else wrong,
        "source": prompt.source,
        "extra": {**prompt.extra, "wrong": wrong is not None},
    }


def pool_of(config: RunConfig, seed: int) -> list[Prompt]:
    """The pool that a run of the config trains on under a seed."""
    from cropi.prompts import load_prompt_sets

    return load_prompt_sets(config.prompts, derive_seed(seed, "prompts")).pool


def sample(
    config: RunConfig, prompts: Sequence[Prompt], responses: int, seed: int
) -> dict[str, list[str]]:
    """Texts of the start model's responses by prompt id, sampled as the config's rollouts."""
    import cropi

    settings = config.rollouts.model_copy(update={"responses": responses})
    with TemporaryDirectory() as folder:
        out = Path(folder) / "rollouts.parquet"
        groups = cropi.rollout(
            config.model.path, prompts, out, verifier="exact", settings=settings, seed=seed
        )
    return {group.prompt_id: [response.text for response in group.responses] for group in groups}


def noisy_pool(config: RunConfig, share: float, responses: int, seed: int) -> list[dict[str, Any]]:
    """Sample the config's pool, and return its rows with wrong answers among them."""
    pool = pool_of(config, seed)
    sampled = sample(config, pool, responses, derive_seed(seed, "noise"))
    wrong = commonest_wrong({p.prompt_id: p.answer for p in pool}, sampled)
    return with_wrong_answers(pool, wrong, share, seed)


def main(arguments: list[str] | None = None) -> None:
    """Command line entry point."""
    from cropi.config import load_config

    parser = argparse.ArgumentParser(prog="noise.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--config", default="pocket", help="preset or YAML file with the pool")
    parser.add_argument("--share", type=float, default=0.3, help="share of wrong answers")
    parser.add_argument("--responses", type=int, default=16, help="sampled per prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="over the config's")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.settings)
    rows = noisy_pool(config, options.share, options.responses, options.seed)
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    options.out.write_text("".join(lines), encoding="utf-8")
    wrong_counts = Counter(row["extra"]["skill"] for row in rows if row["extra"]["wrong"])
    print(f"{wrong_counts.total()} of {len(rows)} answers are wrong: {dict(wrong_counts)}")


if __name__ == "__main__":
    main()
