"""How fast rollout engines are beside each other, and whether they sample what cropi scores.

    CROPI_VLLM_PYTHON=.venv-vllm/bin/python python benchmarks/engines.py [--case NAME ...]

For every case, a model in a dtype, the engines take turns on the same prompts: `transformers`,
`vllm`, and transformers' own continuous batching, which no engine uses. Log-probs are compared with
those of a plain forward pass here in the same dtype, and greedy responses with each other. Writes
benchmarks/results/engines.json, case by case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cropi.config import load_config
from cropi.policy.loading import neutral_generation_config, quiet_libraries
from cropi.policy.reference import PolicyRef
from cropi.prompts import has_chat_template, load_prompt_sets
from cropi.prompts.encoding import encode_all
from cropi.rollouts import Completion, RolloutEngine, load_engine
from cropi.rollouts.settings import EngineChoice
from cropi.schema import Sampling

RESULTS = Path(__file__).parent / "results" / "engines.json"
# vLLM 0.32 on a CPU ends when it splits the prompt of a request that has a seed.
OPTIONS = {"enforce-eager": True, "max-num-seqs": 128, "enable-chunked-prefill": False}


@dataclass(frozen=True)
class Case:
    """A model in a dtype, and how much it samples; `rounds` times each engine."""

    model: str
    dtype: str
    prompts: int
    tokens: int
    context: int
    responses: int = 8
    rounds: int = 2


CASES = {
    "pocket float32": Case("pocket", "float32", 64, 8, 64),
    "smollm2 float32": Case("smollm2", "float32", 8, 24, 1024),
    "smollm2 bfloat16": Case("smollm2", "bfloat16", 8, 24, 1024),
}


def main() -> None:
    """Measure the cases asked for, and write their results beside those of earlier calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--no-continuous", action="store_true", help="without continuous batching")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.case:
        results[name] = measure(CASES[name], continuous=not arguments.no_continuous)
        print(name, json.dumps(results[name], indent=1), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(case: Case, *, continuous: bool) -> dict[str, Any]:
    """Return start-up seconds, tokens per second by engine, and how far log-probs are apart."""
    policy = PolicyRef(case.model, dtype=case.dtype, device="cpu")
    prompts = prompt_ids(case, policy)
    start = time.perf_counter()
    vllm = load_engine(
        EngineChoice.of("vllm", options={**OPTIONS, "max-model-len": case.context}), policy
    )
    vllm.generate(prompts[:2], Sampling(max_new_tokens=2), 2, 0)
    ready = time.perf_counter() - start
    engines: dict[str, Callable[[int], int]] = {
        "transformers": sampler(load_engine("transformers", policy), case, prompts),
        "vllm": sampler(vllm, case, prompts),
    }
    if continuous:
        engines["continuous batching"] = continuous_batching(policy, case, prompts)
    rates = tokens_per_second(engines, case.rounds)
    return {
        "prompts": len(prompts),
        "responses": case.responses,
        "threads": torch.get_num_threads(),
        "vllm ready after s": round(ready, 1),
        "tokens per s": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio to transformers": {
            name: round(rate / rates["transformers"], 3) for name, rate in rates.items()
        },
        "log-probs": logprob_differences(vllm, policy, case, prompts),
        "greedy agreement": greedy_agreement(vllm, policy, case, prompts),
    }


def prompt_ids(case: Case, policy: PolicyRef) -> list[list[int]]:
    """Prompts of the model's preset, as token ids."""
    config = load_config(case.model, [f"prompts.limit={case.prompts}"]).prompts
    sets = load_prompt_sets(config, 0, templated=has_chat_template(policy.tokenizer))
    return encode_all(policy.tokenizer, sets.pool[: case.prompts], config.chat_template_kwargs)


def sampler(
    engine: RolloutEngine, case: Case, prompts: Sequence[Sequence[int]]
) -> Callable[[int], int]:
    """A call that samples with a seed and returns the number of tokens."""

    def sample(seed: int) -> int:
        sampling = Sampling(max_new_tokens=case.tokens)
        return count(engine.generate(prompts, sampling, case.responses, seed))

    return sample


def count(groups: Sequence[Sequence[Completion]]) -> int:
    """Sampled tokens."""
    return sum(len(completion.ids) for group in groups for completion in group)


def continuous_batching(
    policy: PolicyRef, case: Case, prompts: list[list[int]]
) -> Callable[[int], int]:
    """The same with `generate_batch` of transformers."""
    from transformers import ContinuousBatchingConfig

    loaded = policy.load()
    config = neutral_generation_config(loaded.tokenizer, loaded.eos_token_ids)
    config.max_new_tokens, config.num_return_sequences = case.tokens, case.responses

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        with quiet_libraries(stderr=True):
            outputs = loaded.model.generate_batch(
                inputs=prompts,
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True),
                warmup=False,
            )
        return sum(len(output.generated_tokens) for output in outputs.values())

    return sample


def tokens_per_second(engines: dict[str, Callable[[int], int]], rounds: int) -> dict[str, float]:
    """Let the engines take turns, `rounds` times each."""
    tokens, seconds = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0)
    for seed in range(rounds):
        for name, sample in engines.items():
            start = time.perf_counter()
            tokens[name] += sample(seed)
            seconds[name] += time.perf_counter() - start
    return {name: tokens[name] / seconds[name] for name in engines}


def logprob_differences(
    engine: RolloutEngine, policy: PolicyRef, case: Case, prompts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Quantiles in nats against a plain forward pass, and the share of ratios off by a tenth."""
    groups = engine.generate(prompts, Sampling(max_new_tokens=case.tokens), 2, 7)
    pairs = [(ids, c) for ids, group in zip(prompts, groups, strict=True) for c in group]
    off = np.concatenate([c.logprobs - plain(policy.load().model, ids, c) for ids, c in pairs])
    size, ratios = np.abs(off), np.exp(off)
    return {
        "tokens": len(off),
        "median": float(np.median(size)),
        "p99": float(np.quantile(size, 0.99)),
        "largest": float(size.max()),
        "ratios outside 0.9 to 1.1": float(np.mean((ratios < 0.9) | (ratios > 1.1))),
    }


@torch.no_grad()
def plain(model: Any, ids: Sequence[int], completion: Completion) -> np.ndarray:
    """Log-probs [T] of a response at temperature 1, in one forward pass."""
    row = torch.tensor([[*map(int, ids), *completion.ids.tolist()]])
    logits_TV = model(input_ids=row).logits[0, len(ids) - 1 : -1].double()
    chosen = torch.from_numpy(completion.ids.astype(np.int64))[:, None]
    return logits_TV.log_softmax(-1).gather(1, chosen)[:, 0].numpy()


def greedy_agreement(
    engine: RolloutEngine, policy: PolicyRef, case: Case, prompts: Sequence[Sequence[int]]
) -> float:
    """The share of prompts to which both engines give the same greedy response."""
    greedy = Sampling(temperature=0.0, max_new_tokens=case.tokens)
    both = [
        each.generate(prompts, greedy, 1, 0)
        for each in (engine, load_engine("transformers", policy))
    ]
    same = [a.ids.tolist() == b.ids.tolist() for (a,), (b,) in zip(*both, strict=True)]
    return float(np.mean(same))


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    sys.exit(main())
