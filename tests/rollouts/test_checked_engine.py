"""What a user's engine returns is checked before anything of it is used or stored."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.evaluation.pass_at_k import evaluate
from cropi.policy.loading import Policy, load_policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts import load_engine, read_rollouts, rollout
from cropi.rollouts.settings import EngineChoice, RolloutsConfig
from cropi.schema import Prompt, RolloutGroup, Sampling

ENGINE = """
import sys
import numpy as np
from cropi.rollouts import Completion

class Base:
    context = 128

    def __init__(self, policy):
        self.calls = 0

    def completion(self, ids=(5, 6, 1), logprobs=(-0.5, -0.5, -0.5), finish="stop", mode="raw"):
        return Completion(ids, logprobs, finish, mode)

    def generate(self, prompts, sampling, n, seed):
        self.calls += 1
        return [[{completion} for _ in range(n)] for _ in prompts]

class Streaming(Base):
    def stream(self, prompts, sampling, n, seeds):
        for place in range(len(prompts)):
            yield place, [{completion} for _ in range(n)]

class Fewer(Base):
    def generate(self, prompts, sampling, n, seed):
        return [[self.completion()] * (n - 1) for _ in prompts]

class More(Base):
    def generate(self, prompts, sampling, n, seed):
        return [[self.completion()] * (n + 1) for _ in prompts]

class FewerGroups(Base):
    def generate(self, prompts, sampling, n, seed):
        return [[self.completion()] * n]

class Nothing(Base):
    def generate(self, prompts, sampling, n, seed): ...

class Lazy(Base):
    def generate(self, prompts, sampling, n, seed):
        for _ in prompts:
            yield (self.completion() for _ in range(n))

class Breaks(Base):
    def generate(self, prompts, sampling, n, seed):
        yield [self.completion()] * n
        raise RuntimeError("lost it")

class Exits(Base):
    def generate(self, prompts, sampling, n, seed):
        sys.exit(3)

class NoContext(Base):
    @property
    def context(self):
        return None

class Stops(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        yield 1, [self.completion()] * n

class Repeats(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        for _ in prompts:
            yield 0, [self.completion()] * n

class Elsewhere(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        yield len(prompts), [self.completion()] * n

class Backwards(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        yield -1, [self.completion()] * n

class Unpaired(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        yield [self.completion()] * n

class BreaksLate(Streaming):
    def stream(self, prompts, sampling, n, seeds):
        yield np.int64(0), [self.completion()] * n
        raise RuntimeError("lost it")
"""
PROMPTS = [Prompt(f"p{n}", "1", "s", prompt=text) for n, text in enumerate(["s21=", "s321="])]


@pytest.fixture(scope="module")
def pocket() -> Policy:
    return load_policy("pocket", device="cpu")


def write_engine(file: Path, completion: str = "self.completion()") -> None:
    file.write_text(ENGINE.replace("{completion}", completion))


def sampled(pocket: Policy, file: Path, name: str, out: Path | None = None) -> list[RolloutGroup]:
    settings = RolloutsConfig(
        engine=EngineChoice.of(f"{file}:{name}"), responses=3, max_new_tokens=6
    )
    return rollout(pocket, PROMPTS, out or file.with_suffix(".parquet"), settings, verifier="exact")


@pytest.mark.parametrize(("name", "message"), [
    ("Fewer", r"generate returned 2 completions for prompt 0 of the call; give the 3"),
    ("More", r"generate returned 4 completions for prompt 0"),
    ("FewerGroups", r"generate returned groups for 1 of 2 prompts; it must return one list"),
    ("Nothing", "generate returned None; it must return"),
    ("Breaks", r"generate raised RuntimeError: lost it \(line \d+ of .*engine_\w+.py\); correct"),
    ("Exits", r"generate raised SystemExit: 3 \(line"),
    ("NoContext", "context is None; give a whole number"),
    ("Stops", "stream ended without 1 prompt, first index 0"),
    ("Repeats", "stream yielded index 0, which was not asked for or came before"),
    ("Elsewhere", "stream yielded index 2, which was not asked for"),
    ("Backwards", "stream yielded index -1, which was not asked for"),
    ("Unpaired", r"stream yielded \[Completion.*; it must yield \(index, completions\)"),
    ("BreaksLate", r"stream raised RuntimeError: lost it \(line"),
])  # fmt: skip
def test_an_engine_that_does_not_do_what_it_is_asked_is_named_with_its_function(
    pocket: Policy, tmp_path: Path, name: str, message: str
) -> None:
    file = tmp_path / f"engine_{name}.py"
    write_engine(file)
    with pytest.raises(InputError, match=rf"rollout engine '.*engine_{name}.py:{name}': {message}"):
        sampled(pocket, file, name)


@pytest.mark.parametrize(("completion", "message"), [
    ("([5], [-0.1])", r"\(\[5\], \[-0.1\]\), a tuple; give cropi.rollouts.Completion"),
    ("self.completion(logprobs=[-0.5])", "1 log-prob for 3 tokens; give one per token"),
    ("self.completion(logprobs=[-1, 0.5, 0])", "the log-prob 0.5; give the natural log"),
    ("self.completion(logprobs=[-1, np.nan, 0])", "the log-prob nan; give the natural log"),
    ("self.completion(logprobs='abc')", "logprobs 'abc'; give a one-dimensional array"),
    ("self.completion(ids=[5, 48, 1])", "the token id 48; the policy has the ids from 0 to 47"),
    ("self.completion(ids=[5, -1, 1])", "the token id -1; the policy has"),
    ("self.completion(ids=[5, 2**40, 1])", "the token id 1099511627776; the policy has"),
    ("self.completion(ids=[5, 6.5, 1])", r"ids \[5, 6.5, 1\]; give .* of whole numbers"),
    ("self.completion(ids=[[5, 6, 1]])", r"ids \[\[5, 6, 1\]\]; give a one-dimensional"),
    ("self.completion(ids=[True, False, True])", "ids .*; give .* of whole numbers"),
    ("self.completion(ids=[5] * 7, logprobs=[-1] * 7)", "7 ids where max_new_tokens is 6"),
    ("self.completion(finish='eos')", "finish_reason 'eos'; allowed: stop, length"),
    ("self.completion(finish=np.ones(2))", "finish_reason .*; allowed: stop, length"),
    ("self.completion(mode='mine')", "logprob_mode 'mine'; allowed: processed, raw"),
    ("self.completion(mode=['raw', 'processed', 'raw'][_])", "several logprob_modes"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["Base", "Streaming"])
def test_an_unsound_response_is_refused_and_a_mended_engine_continues(
    pocket: Policy, tmp_path: Path, kind: str, completion: str, message: str
) -> None:
    file, out = tmp_path / "engine.py", tmp_path / "out.parquet"
    write_engine(file, completion)
    with pytest.raises(InputError, match=f"returned .*{message}"):
        sampled(pocket, file, kind, out)
    mended = tmp_path / "mended" / file.name
    mended.parent.mkdir()
    write_engine(mended)
    assert [len(group.responses) for group in sampled(pocket, mended, kind, out)] == [3, 3]


@pytest.mark.parametrize("completion", [
    "self.completion()",
    "self.completion(np.array([5, 6, 1], np.int64), np.full(3, -0.5))",
    "self.completion(torch.tensor([5, 6, 1]), torch.full((3,), -0.5, dtype=torch.bfloat16))",
    "self.completion(list(torch.tensor([5, 6, 1])), list(np.full(3, -0.5)))",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["Base", "Streaming", "Lazy"])
def test_numbers_of_any_kind_become_plain_ones(
    pocket: Policy, tmp_path: Path, kind: str, completion: str
) -> None:
    file = tmp_path / "engine.py"
    write_engine(file, completion)
    file.write_text("import torch\n" + file.read_text())
    for response in (r for group in sampled(pocket, file, kind) for r in group.responses):
        assert (response.ids.dtype, response.logprobs.dtype) == (np.int32, np.float32)
        assert (response.ids.tolist(), response.logprobs.tolist()) == ([5, 6, 1], [-0.5] * 3)


def test_a_response_may_be_empty_or_have_a_token_without_probability(
    pocket: Policy, tmp_path: Path
) -> None:
    file = tmp_path / "engine.py"
    write_engine(file, "self.completion([5, 1][:_], [-np.inf] * _)")
    (group, _) = sampled(pocket, file, "Base")
    assert [response.ids.tolist() for response in group.responses] == [[], [5], [5, 1]]


def test_evaluations_are_checked_too(pocket: Policy, tmp_path: Path) -> None:
    file = tmp_path / "engine.py"
    write_engine(file)
    settings = RolloutsConfig(engine=EngineChoice.of(f"{file}:Fewer"), max_new_tokens=6)
    with pytest.raises(InputError, match="generate returned 0 completions"):
        evaluate(pocket, {"test": PROMPTS}, rollouts=settings, verifier="exact")


def test_what_a_stream_had_yielded_before_it_broke_is_stored(
    pocket: Policy, tmp_path: Path
) -> None:
    file = tmp_path / "engine.py"
    write_engine(file)
    with pytest.raises(InputError, match="lost it"):
        sampled(pocket, file, "BreaksLate")
    (part,) = (tmp_path / "engine.parquet.parts").glob("*.parquet")
    assert [group.prompt_id for group in read_rollouts(part)] == ["p1"]


def test_a_changed_engine_samples_again(pocket: Policy, tmp_path: Path) -> None:
    file, out = tmp_path / "engine.py", tmp_path / "out.parquet"
    write_engine(file)
    sampled(pocket, file, "Base", out)
    before = out.read_bytes()
    write_engine(file)
    sampled(pocket, file, "Base", out)
    assert out.read_bytes() == before
    stamped = out.stat().st_mtime_ns
    file.write_text(file.read_text() + "\n# changed")
    sampled(pocket, file, "Base", out)
    assert out.stat().st_mtime_ns != stamped


def test_an_engine_in_a_file_reaches_a_process_that_has_not_loaded_it(tmp_path: Path) -> None:
    file = tmp_path / "engine.py"
    write_engine(file)
    engine = load_engine(f"{file}:Streaming", PolicyRef("pocket"))
    (tmp_path / "engine.pickle").write_bytes(pickle.dumps(engine))
    program = (
        "import pickle, sys; engine = pickle.load(open(sys.argv[1], 'rb')); "
        "from cropi.schema import Sampling; "
        "print(engine.name, len(engine.generate([[5, 6]], Sampling(), 2, 0)[0]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "engine.pickle")]
    assert subprocess.check_output(command, text=True).split() == [f"{file}:Streaming", "2"]
    assert len(engine.generate([[5, 6]], Sampling(), 2, 0)[0]) == 2
