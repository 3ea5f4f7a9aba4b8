"""vLLM samples what cropi scores: the same tokens, log-probs and ends, and nothing gets lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cropi.policy.reference import PolicyRef
from cropi.rollouts import RolloutEngine, load_engine, read_rollouts, rollout
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.serving.server_engine import ServerEngine
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.schema import Prompt, Sampling
from real_engines.conftest import OPTIONS
from support.sampled_logprobs import differences

TEXTS = ["s3211=", "k1:123=", "a12+34=", "x3*4=", "s93=", "a7+8="]
CUT = Sampling(temperature=0.7, top_p=0.9, top_k=7, max_new_tokens=8)
WHOLE = Sampling(max_new_tokens=8)
POCKET = PolicyRef("pocket", device="cpu")


def choice(**settings: object) -> EngineChoice:
    return EngineChoice.of("vllm", options=OPTIONS, **settings)


@pytest.fixture(scope="module")
def engine() -> RolloutEngine:
    return load_engine(choice(), POCKET)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [POCKET.tokenizer(text)["input_ids"] for text in TEXTS]


def ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.ids.tolist() for c in group] for group in groups]


@pytest.mark.parametrize("sampling", [WHOLE, CUT], ids=["whole", "cut"])
def test_log_probs_are_those_of_our_own_forward_pass(
    sampling: Sampling, engine: RolloutEngine, prompts: list[list[int]]
) -> None:
    sampled = engine.generate(prompts, sampling, 8, 5)
    assert {c.logprob_mode for group in sampled for c in group} == {"processed"}
    off = differences(POCKET.load().model, prompts, sampled, sampling)
    assert len(off) > 100
    assert np.quantile(off, 0.99) <= 1e-3


def test_a_response_ends_with_eos_or_at_the_limit(
    engine: RolloutEngine, prompts: list[list[int]]
) -> None:
    reasons = set()
    for tokens in (1, 2, 8):
        for group in engine.generate(prompts, Sampling(max_new_tokens=tokens), 8, 1):
            assert len(group) == 8
            for completion in group:
                stopped = int(completion.ids[-1]) in POCKET.eos_token_ids
                assert not set(completion.ids[:-1].tolist()) & set(POCKET.eos_token_ids)
                assert completion.finish_reason == ("stop" if stopped else "length")
                assert stopped or len(completion.ids) == tokens
                reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


def test_greedy_responses_are_those_of_transformers(
    engine: RolloutEngine, prompts: list[list[int]]
) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=8)
    ours = load_engine("transformers", POCKET).generate(prompts, greedy, 1, 0)
    assert ids(engine.generate(prompts, greedy, 1, 0)) == ids(ours)


def test_the_seed_decides_what_is_drawn(engine: RolloutEngine, prompts: list[list[int]]) -> None:
    first, again, other = (ids(engine.generate(prompts, WHOLE, 8, seed)) for seed in (3, 3, 4))
    same = np.mean([a == b for a, b in zip(first, again, strict=True)])
    assert same >= 0.8, "rounding may turn one draw now and then"
    assert first != other


def test_sampled_frequencies_are_those_of_transformers(engine: RolloutEngine) -> None:
    """The first tokens of many responses to one prompt, drawn by both engines."""
    prompt = [POCKET.tokenizer("k1:123=")["input_ids"]]
    one = Sampling(temperature=1.5, max_new_tokens=1)
    counts = []
    for sampler in (engine, load_engine("transformers", POCKET)):
        (group,) = sampler.generate(prompt, one, 2000, 9)
        counts.append(np.bincount([int(c.ids[0]) for c in group], minlength=48) / 2000)
    assert np.abs(counts[0] - counts[1]).sum() / 2 < 0.1


COLLECT = """
import sys
from real_engines.test_real_vllm import collection
collection(sys.argv[1])
"""


def collection(out: str | Path) -> list[str]:
    prompts = [Prompt(f"p{n}", "3", "exact", prompt=f"a{n}+{n}=") for n in range(1000)]
    settings = RolloutsConfig(engine=choice(), responses=2, max_new_tokens=6)
    groups = rollout(POCKET, prompts, out, settings, verifier="exact", seed=4)
    assert all(len(group.responses) == 2 for group in groups)
    return [group.prompt_id for group in groups]


def serving() -> list[str]:
    """Command lines of servers that belong to no process of ours but this one."""
    servers = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ours = f"CROPI_TEST_OF={os.getpid()}" in (folder / "environ").read_text()
        except OSError:
            continue
        servers += [command] if ours and "vllm" in command else []
    return servers


def test_a_thousand_prompts_survive_a_kill(
    engine: RolloutEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, parts = tmp_path / "r.parquet", tmp_path / "r.parquet.parts"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "CROPI_TEST_OF": str(os.getpid())}
    process = subprocess.Popen([sys.executable, "-c", COLLECT, str(out)], env=environment)
    until = time.monotonic() + 400
    while time.monotonic() < until and len(list(parts.glob("0*.parquet"))) < 2:
        time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
    assert serving()
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = {
        g.prompt_id: [r.ids.tolist() for r in g.responses]
        for part in parts.glob("0*.parquet")
        for g in read_rollouts(part)
    }
    assert 128 <= len(stored) < 1000, "killed in the middle"
    until = time.monotonic() + 60
    while serving() and time.monotonic() < until:
        time.sleep(0.2)
    assert not serving(), "the server outlived the one that it was for"

    asked: list[int] = []
    ask = ServerEngine._ask
    monkeypatch.setattr(
        ServerEngine, "_ask", lambda *a, **k: (asked.append(a[2].top_k), ask(*a, **k))[1]
    )
    assert collection(out) == [f"p{n}" for n in range(1000)]
    assert len([top_k for top_k in asked if top_k == 0]) == 1000 - len(stored)
    for group in read_rollouts(out):
        if group.prompt_id in stored:
            assert [r.ids.tolist() for r in group.responses] == stored[group.prompt_id]
