"""The rollouts that all contenders compute on.

`synthetic` has exact sizes: what is compared with the floor must not depend on how long a model's
answers happen to be. `real_pool` has GSM8K's prompts and the model's own responses; a model of
135M parameters solves none of them in 64 tokens, so the rewards are drawn, with the share of
uninformative groups that pools have. `pocket_pool` is real throughout: sampled and verified.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropi.config import VerifiersConfig
from cropi.pocket.tasks import TARGETS, rows
from cropi.policy.loading import Policy, load_policy
from cropi.prompts.encoding import encode_all
from cropi.rollouts import read_rollouts, write_rollouts
from cropi.rollouts.transformers_engine import TransformersEngine
from cropi.schema import Prompt, Response, RolloutGroup, Sampling, fingerprint
from cropi.verifiers.runtime.response_judge import Judge
from gradient_costs.floor import Rows, logprobs

SAMPLING = Sampling(max_new_tokens=64)
POCKET_SAMPLING = Sampling(max_new_tokens=12)
BATCH = 256
"""Responses generated at once."""

UNINFORMATIVE = 0.45
"""Share of groups whose responses are all right or all wrong; trial pools had 45-50%."""


@dataclass(frozen=True)
class Sizes:
    """Tokens and responses of a synthetic rollout."""

    prompt: int = 60
    responses: int = 8
    response: int = 64


def synthetic(
    model: Any, prompts: int, sizes: Sizes, seed: int, uninformative: float = 0.0
) -> list[RolloutGroup]:
    """Groups of exact sizes: random tokens, the model's own log-probs, rewards of both values."""
    groups = random_groups(model, prompts, sizes, seed, uninformative)
    return with_own_logprobs(model, groups)


def random_groups(
    model: Any, prompts: int, sizes: Sizes, seed: int, uninformative: float = 0.0
) -> list[RolloutGroup]:
    """As `synthetic`, with the log-probs of a policy to which all tokens are equally likely."""
    random = np.random.default_rng(seed)
    vocabulary = len(model.get_input_embeddings().weight)
    uniform = -math.log(vocabulary)
    lengths = [sizes.prompt] + [sizes.response] * sizes.responses
    equal = round(uninformative * prompts)
    groups = []
    for p in range(prompts):
        tokens = [random.integers(vocabulary // 50, vocabulary, n, np.int32) for n in lengths]
        ids, *rest = tokens
        responses = [Response(r, np.full(len(r), uniform, np.float32)) for r in rest]
        groups.append(RolloutGroup(f"synthetic-{seed}-{p}", ids, responses))
        draw_rewards(groups[-1], random, informative=p >= equal)
    return groups


def draw_rewards(group: RolloutGroup, random: np.random.Generator, informative: bool) -> None:
    """Give the responses rewards of 0 and 1: both values, or one for all."""
    count = len(group.responses)
    right = random.integers(1, count) if informative else count * random.integers(0, 2)
    for place, response in enumerate(random.permutation(count)):
        group.responses[response].reward = float(place < right)


def with_own_logprobs(model: Any, groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """Let the model be its own behaviour policy: one forward pass per group."""
    for group in groups:
        parts = Rows.of([group], next(iter(model.parameters())).device, with_weights=False)
        logprobs_S = logprobs(model, parts).cpu().numpy()
        ends = np.cumsum([len(r.ids) for r in group.responses])[:-1]
        for response, values in zip(group.responses, np.split(logprobs_S, ends), strict=True):
            response.logprobs = values.astype(np.float32)
    return groups


def real_pool(
    name: str, prompts: int, gsm8k: Path, cache: Path, device: str, seed: int = 0
) -> list[RolloutGroup]:
    """GSM8K's first prompts with sampled responses, kept as Parquet, and drawn rewards."""
    path = cache / f"pool-{fingerprint(name, prompts, gsm8k.name, seed)}.parquet"
    if not path.exists():
        policy = load_policy(name, dtype="bfloat16", device=device)
        cache.mkdir(parents=True, exist_ok=True)
        write_rollouts(path, list(sample(policy, gsm8k_prompts(gsm8k, prompts), SAMPLING, 8, seed)))
    groups = read_rollouts(path)
    random = np.random.default_rng(seed)
    equal = set(random.permutation(len(groups))[: round(UNINFORMATIVE * len(groups))].tolist())
    for n, group in enumerate(groups):
        draw_rewards(group, random, informative=n not in equal)
    return groups


def gsm8k_prompts(path: Path, count: int) -> list[Prompt]:
    """The first questions of a GSM8K file of JSON lines, as chats."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    return [
        Prompt(
            f"gsm8k-{n}",
            row["answer"],
            "gsm8k",
            messages=({"role": "user", "content": row["question"]},),
        )
        for n, row in enumerate(rows)
    ]


def sample(
    policy: Policy, prompts: Sequence[Prompt], sampling: Sampling, responses: int, seed: int
) -> list[RolloutGroup]:
    """One group a prompt, without rewards."""
    encoded = encode_all(policy.tokenizer, prompts)
    sampled = TransformersEngine(policy, BATCH).generate(encoded, sampling, responses, seed)
    groups = []
    for prompt, ids, completions in zip(prompts, encoded, sampled, strict=True):
        group = [
            Response(
                c.ids,
                c.logprobs,
                policy.tokenizer.decode(c.ids, skip_special_tokens=True),
                c.finish_reason,
                0.0,
                "ok",
            )
            for c in completions
        ]
        groups.append(RolloutGroup(prompt.prompt_id, np.array(ids, np.int32), group, sampling))
    return groups


def pocket_pool(
    prompts: int, validation: int, cache: Path
) -> tuple[list[RolloutGroup], dict[str, list[RolloutGroup]]]:
    """`prompts` informative groups of the pocket model and its informative target groups."""
    folder = cache / f"pocket-{fingerprint(prompts, validation)}"
    files = {name: folder / f"{name}.parquet" for name in ("pool", *TARGETS)}
    if not all(file.exists() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        policy = load_policy("pocket", device="cpu")
        with Judge(VerifiersConfig(default="exact")) as judge:
            source = rows("pool", per_skill=prompts // 4)
            write_rollouts(files["pool"], judged(policy, judge, source, 0, prompts))
            for seed, name in enumerate(TARGETS, start=1):
                chosen = rows("validation", [name], validation)
                write_rollouts(files[name], judged(policy, judge, chosen, seed, validation))
    groups = {name: read_rollouts(file) for name, file in files.items()}
    return groups.pop("pool"), groups


def judged(
    policy: Policy, judge: Judge, source: list[dict[str, Any]], seed: int, most: int
) -> list[RolloutGroup]:
    """The first `most` informative groups of pocket rows."""
    groups: list[RolloutGroup] = []
    for start in range(0, len(source), 512):
        part = source[start : start + 512]
        prompts = [
            Prompt(r["prompt_id"], r["answer"], r["source"], prompt=r["prompt"]) for r in part
        ]
        for prompt, group in zip(
            prompts, sample(policy, prompts, POCKET_SAMPLING, 8, seed + start), strict=True
        ):
            verdicts = judge.judge([(prompt, r.text) for r in group.responses])
            for response, verdict in zip(group.responses, verdicts, strict=True):
                response.reward, response.reward_status = verdict.reward, verdict.status
            groups += [group] if group.informative else []
        if len(groups) >= most:
            break
    return groups[:most]


def unpacked_tokens(groups: Sequence[RolloutGroup]) -> int:
    """Tokens of all prompt+response rows."""
    return sum(len(g.prompt_ids) + len(r.ids) for g in groups for r in g.responses)
