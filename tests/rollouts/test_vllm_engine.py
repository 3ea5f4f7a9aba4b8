"""`vllm serve` is there while its policy is sampled from, and gone afterwards, whatever happens.

A fake takes vLLM's place here; tests/real_engines has the real one.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cropi.config import affects_results
from cropi.curriculum.loop import run
from cropi.curriculum.stage_rollouts import RolloutRefresh
from cropi.curriculum.stage_selection import StageScorer
from cropi.errors import InputError
from cropi.execution.program import last_error
from cropi.policy.loading import load_policy
from cropi.policy.reference import PolicyRef
from cropi.rollouts import load_engine
from cropi.rollouts.engines.vllm import PYTHON_VARIABLE, interpreter
from cropi.rollouts.serving.vllm_server import write_checkpoint
from cropi.rollouts.settings import EngineChoice
from cropi.schema import Sampling
from support import fake_server
from support.fakes import FakeTrainer
from support.process_checks import eventually
from support.tiny_runs import fake_config

IDS = [[31, 32, 5], [7, 8]]
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture
def python(tmp_path: Path) -> str:
    return fake_server.interpreter(tmp_path)


def choice(python: str, tmp_path: Path, **settings: object) -> EngineChoice:
    return EngineChoice.of("vllm", python=python, log=str(tmp_path / "vllm.log"), **settings)


def running(marker: str) -> list[int]:
    """Process ids whose command line holds a text."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if marker in command:
            pids.append(int(folder.name))
    return pids


def test_a_policy_is_served_as_long_as_it_is_there(python: str, tmp_path: Path) -> None:
    policy = PolicyRef("pocket")
    engine = load_engine(choice(python, tmp_path), policy)
    assert len(engine.generate(IDS, SAMPLING, 3, 0)) == 2
    assert load_engine(choice(python, tmp_path), policy).context == 64
    log = (tmp_path / "vllm.log").read_text()
    assert log.count("serving ") == 1, "sets of prompts share the server of their policy"
    assert running(python)
    policy.close()
    assert not running(python), "its memory is needed at once"
    assert len(load_engine(choice(python, tmp_path), policy).generate(IDS, SAMPLING, 3, 0)) == 2
    del engine, policy
    gc.collect()
    eventually(lambda: not running(python))


def test_every_policy_has_a_fresh_server(python: str, tmp_path: Path) -> None:
    for _ in range(2):
        load_engine(choice(python, tmp_path), PolicyRef("pocket")).generate(IDS, SAMPLING, 2, 0)
    assert (tmp_path / "vllm.log").read_text().count("serving ") == 2


def test_the_flags_are_those_of_the_settings(python: str, tmp_path: Path) -> None:
    settings = choice(
        python,
        tmp_path,
        tensor_parallel=2,
        data_parallel=4,
        options={"gpu_memory_utilization": 0.5, "enforce-eager": True, "async-scheduling": False},
    )
    load_engine(settings, PolicyRef("pocket", dtype="bfloat16")).generate(IDS, SAMPLING, 2, 0)
    log = (tmp_path / "vllm.log").read_text()
    for part in (
        "--tensor-parallel-size 2",
        "--data-parallel-size 4",
        "--gpu-memory-utilization 0.5",
        "--enforce-eager",
        "--no-async-scheduling",
        "--dtype bfloat16",
        "--logprobs-mode processed_logprobs",
        "--generation-config vllm",
        "--host 127.0.0.1",
    ):
        assert part in log
    assert "api-key" not in log, "a command line can be read by everybody"


@pytest.mark.parametrize("name", ["host", "api_key", "--logprobs-mode", "dtype", "a b", "model"])
def test_a_flag_that_is_not_free_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"is set by cropi|is not a flag"):
        EngineChoice.of("vllm", options={name: "x"})


def test_a_server_that_does_not_start_is_explained(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAILS", "ValueError: no memory for the cache")
    with pytest.raises(InputError, match=r"ended \(exit code 1\).*: ValueError: no memory") as one:
        load_engine(choice(python, tmp_path), PolicyRef("pocket"))
    assert str(tmp_path / "vllm.log") in str(one.value)
    with pytest.raises(InputError, match="no memory for the cache; see "):
        load_engine(EngineChoice.of("vllm", python=python), PolicyRef("pocket"))


def test_a_port_that_was_taken_is_replaced(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cropi.rollouts.serving import vllm_server

    with fake_server.serving(fake_server.FakeServer()) as other:
        taken = int(other.url.rpartition(":")[2])
        ports, free = iter([taken]), vllm_server._free_port
        monkeypatch.setattr(vllm_server, "_free_port", lambda: next(ports, None) or free())
        monkeypatch.setattr(vllm_server, "_is_ready", _unless(taken, vllm_server._is_ready))
        engine = load_engine(choice(python, tmp_path), PolicyRef("pocket"))
        assert engine.context == 64


def _unless(port: int, is_ready: Callable[..., bool]) -> Callable[..., bool]:
    return lambda pool, url: not url.endswith(f":{port}") and is_ready(pool, url)


def test_a_server_that_dies_is_noticed_at_once(python: str, tmp_path: Path) -> None:
    policy = PolicyRef("pocket")
    engine = load_engine(choice(python, tmp_path), policy)
    engine.generate(IDS, SAMPLING, 2, 0)
    (server,) = [pid for pid in running("--served-model-name") if _child_of(pid, python)]
    os.kill(server, signal.SIGKILL)
    with pytest.raises(InputError, match="vLLM ended"):
        engine.generate(IDS, SAMPLING, 2, 0)


def _child_of(pid: int, marker: str) -> bool:
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return marker in Path(f"/proc/{parent}/cmdline").read_text()


def test_the_interpreter_is_named_found_or_asked_for(
    python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter(python) == python
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    assert interpreter(None) == python
    with pytest.raises(InputError, match="nowhere/python is not an interpreter"):
        interpreter("nowhere/python")
    monkeypatch.delenv(PYTHON_VARIABLE)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"install cropi\[vllm\], or name the python"):
        interpreter(None)


def test_weights_in_memory_are_written_for_the_server(tmp_path: Path) -> None:
    policy = load_policy("pocket", device="cpu")
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[3, 3] += 1.0
    again = load_policy(write_checkpoint(PolicyRef.of(policy), tmp_path / "weights"), device="cpu")
    for (name, weight), copied in zip(
        policy.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, copied), name


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("INFO a\n(X pid=1) ERROR 11-28 10:00:00 [a.py:3] ValueError: bad\n", "ValueError: bad"),
        (
            "torch.OutOfMemoryError: CUDA out of memory: 3 GiB\n"
            "RuntimeError: Engine core initialization failed. See root cause above: {}\n",
            "torch.OutOfMemoryError: CUDA out of memory: 3 GiB",
        ),
        (
            "(Worker pid=1) ERROR 11-28 16:06:07 [executor.py:1063] RuntimeError: no offset\n"
            "RuntimeError: Worker failed with error 'no offset', please check the trace above\n"
            "EngineDeadError: EngineCore encountered an issue. See stack trace (above).\n",
            "RuntimeError: no offset",
        ),
        ("first\n/bin/python: No module named vllm\n\n", "/bin/python: No module named vllm"),
        ("", "it wrote nothing"),
    ],
)
def test_the_log_is_quoted_where_it_says_why(output: str, expected: str) -> None:
    assert last_error(output) == expected


def test_in_a_run_the_server_is_gone_before_scoring_and_training(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[int]]] = []

    def watch(kind: type, method: str) -> None:
        plain = getattr(kind, method)

        def watched(*arguments: Any, **named: Any) -> Any:
            seen.append((method, running(python)))
            return plain(*arguments, **named)

        monkeypatch.setattr(kind, method, watched)

    watch(RolloutRefresh, "rollouts")
    watch(StageScorer, "scores")
    watch(FakeTrainer, "train")
    odd = tmp_path / "odd.py"
    odd.write_text("def odd(completions, **_):\n    return [len(c) % 2 for c in completions]\n")
    engine = f"rollouts.engine={{name: vllm, python: {python}}}"
    run(fake_config(tmp_path, engine, f"verifiers.default={odd}:odd"))
    assert {method for method, _ in seen} == {"rollouts", "scores", "train"}
    assert all(servers == [] for _, servers in seen)
    log = (tmp_path / "runs/tiny/logs/vllm.log").read_text()
    assert log.count("serving ") >= 4, "evaluations of start and stages, and the rollouts"
    seen.clear()
    other = f"rollouts.engine={{name: vllm, python: {python}, options: {{enforce-eager: true}}}}"
    run(fake_config(tmp_path, other, f"verifiers.default={odd}:odd"))
    assert (tmp_path / "runs/tiny/logs/vllm.log").read_text() == log, "nothing is sampled again"


@pytest.mark.parametrize(
    ("key", "decides"),
    [
        ("rollouts.engine.name", True),
        ("rollouts.engine.batch_size", True),
        ("rollouts.engine.model", True),
        ("evaluation.engine.name", True),
        ("rollouts.engine.url", False),
        ("evaluation.engine.python", False),
        ("rollouts.engine.options.gpu-memory-utilization", False),
        ("training.engine.grpo.timeout", True),
    ],
)
def test_where_and_how_fast_decide_no_result(key: str, decides: bool) -> None:
    assert affects_results(key) is decides
