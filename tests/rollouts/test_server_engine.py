"""A server's responses enter rollouts exactly as sampled, each once, whatever the server does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.policy.loading import Policy, load_policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts import RolloutEngine, load_engine, read_rollouts, rollout
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.number_checks import inexact_notes
from cropi.rollouts.serving.connection import Connection
from cropi.rollouts.serving.logprob_mode import effective_mode, measured_mode
from cropi.rollouts.serving.threads import in_threads
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.rollouts.staleness import staleness_under
from cropi.schema import LogprobMode, Prompt, RolloutGroup, Sampling
from support import fake_server
from support.fake_server import FakeServer, cut_off, hang, serving, status, truncated

IDS = [[31, 32, 5], [7, 8], [9, 10, 11, 12], [3, 4]]
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=7, max_new_tokens=6)
WHOLE = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def pocket() -> Policy:
    return load_policy("pocket", device="cpu")


@pytest.fixture(params=["vllm", "sglang"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(FakeServer(owner=request.param)) as server:
        yield server


@pytest.fixture
def vllm() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server


def engine(fake: FakeServer, policy: Policy | PolicyRef, **settings: Any) -> RolloutEngine:
    return load_engine(EngineChoice.of("server", url=fake.url, **settings), policy)


def values(groups: Sequence[Sequence[Completion]]) -> list[list[tuple[list[int], list[float]]]]:
    return [[(c.ids.tolist(), c.logprobs.tolist()) for c in group] for group in groups]


def test_what_the_server_samples_is_what_arrives(fake: FakeServer, pocket: Policy) -> None:
    sampled = engine(fake, pocket).generate(IDS, WHOLE, 3, 5)
    requests = {tuple(r.get("prompt") or r["input_ids"][0]): r for r in fake.sampled}
    for ids, group in zip(IDS, sampled, strict=True):
        request = requests[tuple(ids)]
        if fake.owner == "vllm":
            expected = fake_server.made_up(request, 3)
        else:
            settings = [
                {**s, "prompt": ids, "seed": s["sampling_seed"], "max_tokens": s["max_new_tokens"]}
                for s in request["sampling_params"]
            ]
            expected = [fake_server.made_up(each, 1)[0] for each in settings]
        assert [c.ids.tolist() for c in group] == [each for each, _ in expected]
        for completion, (_, logprobs) in zip(group, expected, strict=True):
            np.testing.assert_array_equal(completion.logprobs, np.float32(logprobs))
            stopped = int(completion.ids[-1]) in pocket.eos_token_ids
            assert completion.finish_reason == ("stop" if stopped else "length")


def test_equal_calls_give_equal_results_and_another_seed_does_not(
    fake: FakeServer, pocket: Policy
) -> None:
    sampler = engine(fake, pocket)
    drawn = [values(sampler.generate(IDS, WHOLE, 3, seed)) for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_responses_of_a_prompt_have_seeds_of_their_own(
    fake: FakeServer, pocket: Policy
) -> None:
    (group,) = engine(fake, pocket).generate([IDS[0]], WHOLE, 8, 5)
    assert len({tuple(c.ids.tolist()) for c in group}) > 4


def test_every_field_of_the_sampling_is_sent(fake: FakeServer, pocket: Policy) -> None:
    engine(fake, pocket).generate(IDS[:1], SAMPLING, 2, 5)
    (request,) = [r for r in fake.asked if "top_k" not in r or r["top_k"] == 7]
    sent = request if fake.owner == "vllm" else request["sampling_params"][1]
    limit = sent.get("max_tokens", sent.get("max_new_tokens"))
    assert (sent["temperature"], sent["top_p"], sent["top_k"], limit) == (0.7, 0.9, 7, 6)
    assert sent["stop_token_ids"] == list(pocket.eos_token_ids)
    neutral = {"min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert {name: sent[name] for name in neutral} == neutral


def test_greedy_responses_are_asked_for_once(vllm: FakeServer, pocket: Policy) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=4)
    (group,) = engine(vllm, pocket).generate(IDS[:1], greedy, 3, 0)
    assert len(values([group])[0]) == 3
    assert len({tuple(c.ids.tolist()) for c in group}) == 1
    assert [r["n"] for r in vllm.sampled] == [1]


PASSING = {
    "429": status(429),
    "429 with a pause": status(429, Retry_After="0.01"),
    "500": status(500),
    "503": status(503),
    "no answer": hang(1.5),
    "JSON cut off": truncated,
    "connection cut off": cut_off,
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_changes_nothing(
    name: str, vllm: FakeServer, pocket: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "_pause", lambda *_: 0.01)
    sampler = engine(vllm, pocket, timeout=0.5, concurrency=2)
    expected = values(sampler.generate(IDS, WHOLE, 2, 5))
    vllm.faults = [PASSING[name], PASSING[name]]
    assert values(sampler.generate(IDS, WHOLE, 2, 5)) == expected


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_stays_is_named_after_so_many_tries(
    name: str, vllm: FakeServer, pocket: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "_pause", lambda *_: 0.01)
    vllm.faults = [PASSING[name]] * 50
    with pytest.raises(InputError, match=f"server at {vllm.url} failed 3 times: "):
        engine(vllm, pocket, timeout=0.2, tries=3).generate(IDS, WHOLE, 2, 5)


def test_pauses_grow_and_a_server_may_ask_for_longer_ones() -> None:
    connection = Connection("http://localhost:1", None, connections=1, timeout=1, tries=9)
    from cropi.rollouts.serving.connection import PassingError

    class State:
        def __init__(self, attempt: int, pause: float | None) -> None:
            self.attempt_number = attempt
            self.outcome = type("Outcome", (), {"exception": lambda _: PassingError("", pause)})()

    def pause(attempt: int, asked: float | None = None) -> float:
        return connection._pause(State(attempt, asked))

    assert 0.25 <= pause(1) <= 0.5
    assert 4 <= pause(5) <= 8
    assert pause(30) <= 60
    assert pause(1, 7.0) >= 7.0
    assert pause(1, 1e9) <= 61


def without_ids(answer: Any) -> Any:
    for choice in answer["choices"]:
        del choice["token_ids"]
    return answer


def without_logprobs(answer: Any) -> Any:
    for choice in answer["choices"]:
        choice["logprobs"] = None
    return answer


def one_fewer(answer: Any) -> Any:
    return {"choices": answer["choices"][1:]}


def another_prompt(answer: Any) -> Any:
    for choice in answer["choices"]:
        choice["prompt_token_ids"] = [2, *choice["prompt_token_ids"]]
    return answer


def shortened(answer: Any) -> Any:
    for choice in answer["choices"]:
        choice["token_ids"] = [9]
        choice["logprobs"]["token_logprobs"] = [-0.5]
    return answer


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no token ids": (without_ids, "has no token ids"),
    "no log-probs": (without_logprobs, "without a log-prob for each"),
    "wrong n": (one_fewer, "returned 1 responses where 2 were asked for|returned 0 responses"),
    "another prompt": (another_prompt, "read a prompt of 2 tokens as 3 others"),
    "ended early": (shortened, "without an end-of-sequence token"),
    "a number": (lambda _: 7, "has no choices"),
    "choices of text": (lambda _: {"choices": ["a", "b"]}, "has no token ids"),
    "null ids": (lambda _: {"choices": [{"token_ids": [None, "x"]}] * 2}, "log-prob|returns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(
    name: str, vllm: FakeServer, pocket: Policy
) -> None:
    change, message = WRONG[name]
    vllm.change = change
    with pytest.raises(InputError, match=message):
        engine(vllm, pocket).generate(IDS, WHOLE, 2, 5)


def visible(body: dict[str, Any], n: int) -> list[tuple[list[int], list[float]]]:
    """Responses of tokens that a text shows."""
    return [
        ([7 if i < 4 and i not in body["stop_token_ids"] else i for i in ids], logprobs)
        for ids, logprobs in fake_server.made_up(body, n)
    ]


@pytest.fixture
def texts(pocket: Policy) -> Iterator[FakeServer]:
    def text(ids: list[int]) -> str:
        return str(pocket.tokenizer.decode(ids))

    with serving(FakeServer(owner="another", text=text, sampler=visible)) as server:
        yield server


def test_texts_become_tokens_again_where_that_is_asked_for(
    texts: FakeServer, pocket: Policy
) -> None:
    sampled = engine(texts, pocket, exact=False).generate(IDS, SAMPLING, 3, 5)
    assert len(texts.asked) == 3 * len(IDS), "such servers do not sample several at once"
    assert len({body["seed"] for body in texts.asked}) == len(texts.asked)
    prompts = {pocket.tokenizer.decode(ids) for ids in IDS}
    assert {body["prompt"] for body in texts.asked} == prompts
    by_request = {(body["prompt"], body["seed"]): visible(body, 1)[0][0] for body in texts.asked}
    made = [c.ids.tolist() for group in sampled for c in group]
    assert sorted(made) == sorted(by_request.values()), "pocket's characters are its tokens"
    assert not any(c.exact for group in sampled for c in group)
    assert {c.logprob_mode for group in sampled for c in group} == {"recomputed"}


def test_rollouts_from_texts_say_so_and_have_the_policys_own_log_probs(
    texts: FakeServer, pocket: Policy, tmp_path: Path
) -> None:
    prompts = [Prompt(f"p{n}", "3", "exact", prompt=f"a{n}+{n}=") for n in range(6)]
    choice = EngineChoice.of("server", url=texts.url, exact=False)
    settings = RolloutsConfig(engine=choice, responses=3, max_new_tokens=6, temperature=0.7)
    out = tmp_path / "r.parquet"
    rollout(pocket, prompts, out, settings, verifier="exact", seed=4)
    groups = read_rollouts(out)
    assert {(group.exact, group.logprob_mode) for group in groups} == {(False, "recomputed")}
    staleness = staleness_under(pocket.model, groups)
    assert staleness.ess > 0.999999
    assert any("came as text" in note for note in staleness.notes)
    assert "6 prompts, first p0, whose responses" in inexact_notes("the pool", groups)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [7]}, "leave rollouts.engine.exact at true"),
        ({"finish_reason": None}, "no text that ended by itself"),
        ({"text": None}, "no text that ended by itself"),
    ],
)
def test_texts_that_say_too_little_are_refused(
    change: dict[str, Any], message: str, texts: FakeServer, pocket: Policy
) -> None:
    texts.change = lambda answer: {"choices": [{**answer["choices"][0], **change}]}
    with pytest.raises(InputError, match=message):
        engine(texts, pocket, exact=False).generate(IDS, WHOLE, 2, 5)


def test_a_server_without_ids_is_told_how_to_be_used_all_the_same(
    texts: FakeServer, pocket: Policy
) -> None:
    with pytest.raises(InputError, match=r"rollouts\.engine\.exact=false"):
        engine(texts, pocket).generate(IDS, WHOLE, 2, 5)


def test_a_log_prob_of_minus_infinity_stays_one(vllm: FakeServer, pocket: Policy) -> None:
    vllm.sampler = lambda body, n: [([5, 1], [-9999.0, -0.5])] * n
    vllm.faults = []
    (group,) = engine(vllm, pocket).generate(IDS[:1], WHOLE, 2, 5)
    assert group[0].logprobs.tolist() == [-np.inf, -0.5]


def test_a_key_is_needed_sent_and_shown_nowhere(
    fake: FakeServer, pocket: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = "s3cret-key"
    monkeypatch.delenv("CROPI_SERVER_KEY", raising=False)
    with pytest.raises(InputError, match=r"401.*key_variable"):
        engine(fake, pocket).generate(IDS, WHOLE, 2, 5)
    monkeypatch.setenv("MY_KEY", "s3cret-key")
    choice = EngineChoice.of("server", url=fake.url, key_variable="MY_KEY")
    sampler = load_engine(choice, pocket)
    assert len(sampler.generate(IDS, WHOLE, 2, 5)) == len(IDS)
    assert "s3cret" not in repr(choice) + repr(vars(sampler)) + str(choice.model_dump())
    monkeypatch.setenv("MY_KEY", "s3cret\nX: y")
    with pytest.raises(InputError, match="MY_KEY holds characters") as caught:
        load_engine(choice, pocket)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "not an address"),
        ("ftp://host", "not an address"),
        ("http://", "not an address"),
        ("http://user:pw@host:1", "key_variable"),
        ("http://host/?key=1", "key_variable"),
        ("http://[::1", "not an address"),
        ("http://host:99999", "not an address"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineChoice.of("server", url=url)


@pytest.mark.parametrize("url", ["http://h:8000/", "http://h:8000/v1", " http://h:8000/v1/ "])
def test_an_address_may_end_as_clients_write_it(url: str) -> None:
    assert EngineChoice.of("server", url=url).settings.url == "http://h:8000"


def test_a_server_with_another_model_is_refused(vllm: FakeServer, pocket: Policy) -> None:
    vllm.model = "somebody/else"
    with pytest.raises(InputError, match="serves somebody/else, and the policy is pocket"):
        engine(vllm, pocket).generate(IDS, WHOLE, 2, 5)
    with pytest.raises(InputError, match="serves somebody/else, and the policy is mine"):
        engine(vllm, pocket, model="mine").generate(IDS, WHOLE, 2, 5)
    assert engine(vllm, pocket, model="somebody/else").generate(IDS, WHOLE, 2, 5)


def test_the_smaller_context_counts(vllm: FakeServer, pocket: Policy) -> None:
    assert engine(vllm, pocket).context == 64
    vllm.context = 20
    assert engine(vllm, pocket).context == 20


def test_no_more_prompts_are_asked_for_at_once_than_allowed(
    vllm: FakeServer, pocket: Policy
) -> None:
    three = threading.Barrier(3)

    def together(body: dict[str, Any], n: int) -> Any:
        if body["top_k"] != 1:
            three.wait(60)
        return fake_server.made_up(body, n)

    vllm.sampler = together
    engine(vllm, pocket, concurrency=3).generate([[5, k] for k in range(2, 14)], WHOLE, 1, 0)
    assert vllm.most_at_once == 3


def test_nothing_there_is_said_in_one_sentence(pocket: Policy) -> None:
    choice = EngineChoice.of("server", url="http://127.0.0.1:9", tries=1)
    with pytest.raises(InputError, match=r"failed: nothing answers there; what was sampled is"):
        load_engine(choice, pocket).generate(IDS, WHOLE, 2, 5)


def test_calls_under_way_are_not_lost_to_an_error_of_another() -> None:
    begun, failed = threading.Barrier(4), threading.Event()

    def call(place: int) -> int:
        begun.wait(60)
        if place == 1:
            failed.set()
            raise InputError("no")
        failed.wait(60)
        time.sleep(0.05)  # so that the error is known before these end
        return place

    arrived: list[int] = []

    def consume() -> None:
        for _, value in in_threads(call, 50, 4):
            arrived.append(value)

    with pytest.raises(InputError, match="no"):
        consume()
    assert sorted(arrived) == [0, 2, 3]


# --- which log-probs a server returns


@pytest.mark.parametrize("mode", ["processed", "raw", "before_top_p"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mode_is_measured(mode: LogprobMode, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (len(IDS), 8, 40))

    def ask(ids: Sequence[int], sampling: Sampling) -> Completion:
        rows = logits[IDS.index(list(ids))][: sampling.max_new_tokens]
        scaled = rows / (1.0 if mode == "raw" else sampling.temperature)
        logprobs = scaled.max(1) - np.log(np.exp(scaled).sum(1))
        reported = np.zeros(len(rows)) if mode == "processed" else logprobs
        noise = rng.normal(0, 1e-3, len(rows)) * (mode != "processed")
        return Completion(
            rows.argmax(1).astype(np.int32), (reported + noise).astype(np.float32), "stop"
        )

    assert measured_mode(ask, IDS, 6) == mode


def test_logits_are_no_log_probs() -> None:
    def ask(ids: Sequence[int], sampling: Sampling) -> Completion:
        return Completion(np.array([3], np.int32), np.array([12.5], np.float32), "length")

    with pytest.raises(InputError, match="logits in place of log-probs"):
        measured_mode(ask, IDS, 6)


def test_a_mode_counts_where_it_makes_a_difference() -> None:
    assert effective_mode("raw", WHOLE) == "processed"
    assert effective_mode("raw", Sampling(temperature=0.5)) == "raw"
    assert effective_mode("before_top_p", Sampling(temperature=0.5)) == "processed"
    assert effective_mode("before_top_p", SAMPLING) == "before_top_p"
    assert effective_mode("processed", SAMPLING) == "processed"


def test_the_mode_is_stored_with_the_rollouts(fake: FakeServer, tmp_path: Path) -> None:
    groups = collected(fake, tmp_path / "r.parquet", temperature=0.7, top_p=0.9)
    expected = "processed" if fake.owner == "vllm" else "before_top_p"
    assert {group.logprob_mode for group in groups} == {expected}
    assert {g.logprob_mode for g in read_rollouts(tmp_path / "r.parquet")} == {expected}


# --- collecting


def prompts(count: int = 12) -> list[Prompt]:
    return [Prompt(f"p{n}", "3", "exact", prompt=f"a{n}+1=") for n in range(count)]


def collected(
    fake: FakeServer, out: Path, count: int = 12, tries: int = 1, **sampling: Any
) -> list[RolloutGroup]:
    choice = EngineChoice.of("server", url=fake.url, tries=tries, concurrency=4)
    settings = RolloutsConfig(engine=choice, responses=3, max_new_tokens=6, **sampling)
    return rollout("pocket", prompts(count), out, settings, verifier="exact", seed=4)


def asked_prompts(fake: FakeServer) -> list[tuple[int, ...]]:
    return [tuple(r.get("prompt") or r["input_ids"][0]) for r in fake.sampled]


def test_every_prompt_is_asked_for_once_and_kept_in_order(fake: FakeServer, tmp_path: Path) -> None:
    groups = collected(fake, tmp_path / "r.parquet")
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts()]
    looks = 8 if fake.owner == "vllm" else 0
    assert len(fake.asked) == 12 + looks
    assert all(len(g.responses) == 3 and g.exact for g in groups)
    assert not (tmp_path / "r.parquet.parts").exists()


def test_a_collection_that_failed_asks_only_for_what_is_missing(
    vllm: FakeServer, tmp_path: Path
) -> None:
    whole = collected(vllm, tmp_path / "whole.parquet")
    vllm.asked.clear()
    turn = iter(range(100))

    def fails_at_the_seventh(body: dict[str, Any], n: int) -> Any:
        if body["top_k"] != 1 and next(turn) == 6:
            raise ConnectionError
        return fake_server.made_up(body, n)

    vllm.sampler = fails_at_the_seventh
    with pytest.raises(InputError, match="what was sampled is kept"):
        collected(vllm, tmp_path / "r.parquet")
    before = asked_prompts(vllm)
    vllm.asked.clear()
    assert_same(collected(vllm, tmp_path / "r.parquet"), whole)
    assert len(set(before) & set(asked_prompts(vllm))) == 1, "the one that failed"
    assert len(before) - 1 + len(asked_prompts(vllm)) == 12


def assert_same(actual: Sequence[RolloutGroup], expected: Sequence[RolloutGroup]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.prompt_id, a.prompt_ids.tolist()) == (b.prompt_id, b.prompt_ids.tolist())
        for one, other in zip(a.responses, b.responses, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            assert one.logprobs.tolist() == other.logprobs.tolist()


def test_where_the_server_is_does_not_change_what_was_sampled(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    with serving(FakeServer()) as first:
        groups = collected(first, out)
    with serving(FakeServer()) as second:
        assert_same(collected(second, out, tries=5), groups)
        assert second.asked == []


KILLED = """
import sys
from cropi.rollouts import rollout
from cropi.rollouts import collect_streamed
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.schema import Prompt
collect_streamed.PART_PROMPTS = 5
prompts = [Prompt(f"p{n}", "3", "exact", prompt=f"a{n}+1=") for n in range(60)]
choice = EngineChoice.of("server", url=sys.argv[1], concurrency=4)
settings = RolloutsConfig(engine=choice, responses=3, max_new_tokens=6)
rollout("pocket", prompts, sys.argv[2], settings, verifier="exact", seed=4)
"""


def test_a_kill_loses_and_doubles_nothing(vllm: FakeServer, tmp_path: Path) -> None:
    whole = collected(vllm, tmp_path / "whole.parquet", count=60)
    vllm.asked.clear()
    out = tmp_path / "r.parquet"

    def slowly(body: dict[str, Any], n: int) -> Any:
        time.sleep(0.03)
        return fake_server.made_up(body, n)

    vllm.sampler = slowly
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, vllm.url, str(out)]
    process = subprocess.Popen(command, env=environment)
    parts = tmp_path / "r.parquet.parts"
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(parts.glob("0*.parquet"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = sum(len(read_rollouts(path)) for path in parts.glob("0*.parquet"))
    assert 15 <= stored < 60, "killed in the middle"
    vllm.asked.clear()
    assert_same(collected(vllm, out, count=60), whole)
    assert len(asked_prompts(vllm)) == 60 - stored
