"""`cropi diagnose` as a user meets it: a table, a verdict, a page that loads nothing, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cropi.rollouts import write_rollouts
from cropi.schema import Response, RolloutGroup
from support.command_line import Command
from support.tiny_runs import FAKE, untrained, write_config

Diagnose = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diagnose(cropi: Command) -> Diagnose:
    """Call `cropi diagnose` in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        outcome = cropi("diagnose", *arguments)
        return outcome.code, outcome.out, outcome.err

    return call


def rollouts(path: Path, prompts: int, seed: int, name: str = "p") -> Path:
    """Random rollouts in the pocket model's vocabulary."""
    rng = np.random.default_rng(seed)
    groups = []
    for n in range(prompts):
        responses = [
            Response(
                rng.integers(2, 30, 3).astype(np.int32),
                rng.normal(-2, 0.5, 3).astype(np.float32),
                "x",
                reward=float(k % 2),
            )
            for k in range(4)
        ]
        ids = rng.integers(2, 30, 5).astype(np.int32)
        groups.append(RolloutGroup(f"{name}<b>{n}", ids, responses))
    write_rollouts(path, groups)
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return rollouts(tmp_path / "pool.parquet", 12, 0)


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    return rollouts(tmp_path / "val.parquet", 4, 1, "v")


def written(out: Path, name: str) -> dict:
    """The JSON, having looked at the page beside it."""
    page = (out / f"{name}.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page
    assert "<b>" not in page.split("<body>")[1].split('<script type="application/json"')[0]
    assert 'class="chart"' in page

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not strict JSON")

    numbers = json.loads((out / f"{name}.json").read_text(), parse_constant=refuse)
    assert numbers["verdict"]
    return dict(numbers)


def test_staleness_prints_a_verdict_and_writes_page_and_numbers(
    diagnose: Diagnose, pool: Path, tmp_path: Path
) -> None:
    code, out, err = diagnose(
        "staleness", pool, "--model", "pocket", "--out", tmp_path / "look", "--worst", 3
    )
    assert code == 0, err
    assert "effective share" in out
    assert "p<b>" in out
    numbers = written(tmp_path / "look", "staleness")
    assert numbers["level"] in ("fresh", "partly stale", "stale")
    assert numbers["verdict"] in out
    assert len(numbers["prompts"]) == 12
    assert set(numbers["refresh"]) <= {p["prompt_id"] for p in numbers["prompts"]}


def test_step_prints_every_band_and_writes_page_and_numbers(
    diagnose: Diagnose, pool: Path, validation: Path, tmp_path: Path
) -> None:
    small = (
        "--band-size",
        3,
        "--random-bands",
        2,
        "--single-prompts",
        4,
        "--learning-rate",
        "1e-7,1e-6",
    )
    arguments = ("--model", "pocket", "--target", f"v[b]={validation}", *small)
    code, out, err = diagnose("step", pool, *arguments, "--out", tmp_path / "look")
    assert code == 0, err
    for band in ("most influential", "middle", "least influential", "random"):
        assert band in out
    numbers = written(tmp_path / "look", "step")
    steps = numbers["targets"][0]["steps"]
    assert len(steps) == 2 * (3 + 2) + 4
    assert isinstance(numbers["as_predicted"], bool)


def test_fidelity_recommends_and_writes_page_and_numbers(
    diagnose: Diagnose, pool: Path, validation: Path, tmp_path: Path
) -> None:
    small = ("--sketches", "sparse,windowed", "--dims", "64,128", "--ratios", "1,0.2")
    arguments = ("--model", "pocket", "--target", f"v={validation}", *small)
    few = ("--sketch-seeds", 2, "--timed-prompts", 2, "--min-precision", 0.01)
    code, out, err = diagnose("fidelity", pool, *arguments, *few, "--out", tmp_path / "look")
    assert code == 0, err
    assert "Use " in out
    numbers = written(tmp_path / "look", "fidelity")
    assert len(numbers["sketches"]) == 6
    name, _, dim = str(numbers["recommended"]).rpartition(", ")
    assert name in ("sparse 1", "sparse 0.2", "windowed")
    assert dim in ("64", "128")


def test_loo_retrains_prints_every_block_and_writes_page_and_numbers(
    diagnose: Diagnose, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    small = ("--steps", 1, "--random-blocks", 1, "--repeats", 1, "--share", 0.3)
    fakes = (*FAKE, f"model.path={untrained()}")
    code, out, err = diagnose("loo", config, *small, "--out", tmp_path / "look", *fakes)
    assert code == 0, err
    for block in ("most influential for sort", "least influential for sort", "random"):
        assert block in out
    numbers = written(tmp_path / "look", "loo")
    assert len(numbers["targets"][0]["blocks"]) == 3
    assert numbers["as_predicted"] is False


def test_bad_input_is_one_sentence_before_any_work(
    diagnose: Diagnose, pool: Path, validation: Path, tmp_path: Path
) -> None:
    target = ("--target", f"v={validation}")
    cases = [
        (("staleness", tmp_path / "none.parquet", "--model", "pocket"), "none.parquet"),
        (("step", pool, "--model", "pocket", "--target", "nameless"), "NAME=FILE"),
        (("step", pool, "--model", "pocket", *target, "--learning-rate", "fast"), "fast"),
        (("step", pool, "--model", "pocket", *target, "--learning-rate", "0"), "above 0"),
        (("fidelity", pool, "--model", "pocket", *target, "--dims", "1.5"), "whole numbers"),
        (("fidelity", pool, "--model", "pocket", *target, "--sketches", "no"), "no"),
        (("staleness", pool, "--model", "pocket", "--out", pool), "pool.parquet"),
    ]
    for arguments, words in cases:
        code, _, err = diagnose(*arguments)
        assert code == 2, arguments
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert words in err, err


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; from cropi.cli import main\n"
        "import cropi.diagnostics\n"
        "sys.argv[1:] = ['diagnose', 'step', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        *(("step", "--learning-rate", value) for value in ("nan", "1e300", "1e-320", "inf")),
        *(("fidelity", "--dims", value) for value in ("nan", "inf", "1.5")),
        *(("fidelity", "--top", value) for value in ("nan", "0", "2")),
        *(("fidelity", "--min-precision", value) for value in ("nan", "2")),
        *(("fidelity", "--max-seconds", value) for value in ("-1", "nan")),
    ],
)
def test_numbers_out_of_range_are_one_sentence(
    diagnose: Diagnose, pool: Path, validation: Path, kind: str, option: str, value: str
) -> None:
    code, _, err = diagnose(
        kind, pool, "--target", f"v={validation}", "--model", "pocket", option, value
    )
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
