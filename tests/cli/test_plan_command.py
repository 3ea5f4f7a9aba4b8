"""`cropi plan`: a table before a run, JSON for programs, and short runs that are made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropi.forecast import short_runs
from support.command_line import Command
from support.tiny_runs import write_config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_is_a_table_and_writes_nothing(cropi: Command, tmp_path: Path, cache: Path) -> None:
    outcome = cropi("plan", write_config(tmp_path), "--gpu", "h100", "baselines=[full]")
    outcome.done()
    table = [
        line for line in outcome.out.splitlines() if line.startswith(("arm", "shared", "total"))
    ]
    assert len(table) > 4
    assert "GPU hours" in table[0]
    assert all(len(line) <= 80 for line in table)
    assert "~" in table[-1]
    assert "full: selects nothing" in outcome.out
    assert not (tmp_path / "runs").exists()
    assert not cache.exists()


def test_a_run_without_room_for_a_prompt_is_refused(cropi: Command, tmp_path: Path) -> None:
    setting = "rollouts.max_new_tokens=64"
    cropi("plan", write_config(tmp_path), setting).refused(f"{setting} leaves no room", "of 64")


def test_json_says_what_the_table_says(cropi: Command, tmp_path: Path) -> None:
    outcome = cropi("plan", write_config(tmp_path), "--gpu", "a100", "--gpus", 4, "--json")
    outcome.done()
    values = json.loads(outcome.out)
    assert values["gpus"] == 4
    assert values["hardware"]["name"] == "a100"
    assert values["totals"]["seconds"] == pytest.approx(sum(p["seconds"] for p in values["phases"]))
    assert {p["phase"] for p in values["phases"]} >= {"rollouts", "scoring", "training"}


def test_what_cannot_be_planned_is_refused(cropi: Command, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    cropi("plan", config, "--gpu", "abacus").refused("--gpu abacus", "h100")
    cropi("plan", config, "--probe", "--gpus", 2).refused("--probe", "--gpus")
    cropi("plan", config, "model.path=./nowhere").refused("nowhere")
    cropi("plan", config, "--gpus", 2, "--gpu", "cpu").refused("--gpus 2", "--gpu")
    assert cropi("plan", config, "--gpus", 0).code == 2


def test_a_pilot_and_a_probe_measure_once(
    cropi: Command, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_runs, "PILOT_PROMPTS", 24)
    monkeypatch.setattr(short_runs, "PROBE_PROMPTS", (12, 24))
    monkeypatch.setattr(short_runs, "PROBE_STEPS", (1, 2))
    arguments = ("plan", write_config(tmp_path), "--pilot", "--probe", "--json")
    first = cropi(*arguments)
    first.done()
    values = json.loads(first.out)
    assert values["behaviour"]["source"] == "pilot"
    unmeasured = [each["phase"] for each in values["phases"] if not each["measured"]]
    assert unmeasured == ["start-up"]  # these runs begin in a process that has begun
    files = sorted(file.name for file in cache.rglob("*") if file.is_file())
    assert [Path(name).suffix for name in files] == [".json", ".json"]
    monkeypatch.setattr(short_runs, "run", None)
    monkeypatch.setattr(short_runs, "open_curriculum", None)
    again = cropi(*arguments)
    again.done()
    assert again.out == first.out


def test_a_damaged_measurement_is_made_again(
    cropi: Command, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_runs, "PILOT_PROMPTS", 12)
    arguments = ("plan", write_config(tmp_path), "--pilot")
    cropi(*arguments).done()
    (stored,) = cache.rglob("*.json")
    whole = stored.read_text(encoding="utf-8")
    stored.write_text(whole[: len(whole) // 2], encoding="utf-8")
    outcome = cropi(*arguments)
    outcome.done()
    assert stored.read_text(encoding="utf-8") == whole
    assert "dead groups" in outcome.out
