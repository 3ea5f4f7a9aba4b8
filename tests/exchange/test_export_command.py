"""`cropi export`: every selection that was ever made is found, or the reason why not is told."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pyarrow.parquet as pq
import pytest

from cropi.curriculum.loop import run
from cropi.store.tables import read_scores, read_selection
from support.command_line import Command
from support.tiny_runs import fake_config


@cache
def finished() -> Path:
    """A run of two stages with a baseline; nothing writes to it."""
    return run(fake_config(Path(mkdtemp(prefix="exported-")), "baselines=[random]"))


def exported_ids(out: Path) -> list[str]:
    return pq.read_table(out / "selection.parquet")["prompt_id"].to_pylist()


@pytest.mark.parametrize(("options", "arm", "stage"), [
    ((), "cropi", 1),
    (("--stage", 0), "cropi", 0),
    (("--arm", "random"), "random", 1),
])  # fmt: skip
def test_a_stage_of_a_run_comes_with_its_rows_its_policy_and_its_verifiers(
    cropi: Command, tmp_path: Path, options: tuple[object, ...], arm: str, stage: int
) -> None:
    out, folder = tmp_path / "out", finished() / "arms" / arm / "stages"
    done = cropi("export", finished(), "--to", "trl", "--out", out, *options)
    done.done()
    selected = read_selection(folder / str(stage) / "selection.parquet").prompt_ids
    assert exported_ids(out) == selected
    if stage:
        assert str(folder / "0" / "policy") in done.out
    assert json.loads((out / "verifiers.json").read_text())["default"] == "exact"
    as_folder = tmp_path / "as-folder"
    cropi("export", folder / str(stage), "--to", "trl", "--out", as_folder).done()
    assert exported_ids(as_folder) == selected


@pytest.mark.parametrize("file", ["prompts/pool.parquet", "config.yaml", "SELECTION"])
def test_no_other_stage_is_exported_in_the_place_of_one_that_is_damaged(
    cropi: Command, tmp_path: Path, file: str
) -> None:
    run = Path(shutil.copytree(finished(), tmp_path / "run"))
    stages = run / "arms" / "cropi" / "stages"
    damaged = stages / "1" / "selection.parquet" if file == "SELECTION" else run / file
    to = ("--to", "trl", "--out", tmp_path / "out")
    damaged.unlink()
    if file != "config.yaml":  # by which a folder is known as that of a run
        cropi("export", run, *to).refused(str(damaged), "missing", "continue the run")
    shutil.copy(stages / "0" / "selection.parquet", damaged)
    cropi("export", run, *to).refused(str(damaged), "damaged")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("left", "reason"), [
    (["cropi_stage.json"], "were deleted (curriculum.keep_checkpoints=last)"),
    (["cropi_stage.json", "config.json"], "is missing"),
    ([], "is missing"),
])  # fmt: skip
def test_a_policy_that_is_lost_is_not_replaced_by_another(
    cropi: Command, tmp_path: Path, left: list[str], reason: str
) -> None:
    run = Path(shutil.copytree(finished(), tmp_path / "run"))
    policy, out = run / "arms" / "cropi" / "stages" / "0" / "policy", tmp_path / "out"
    for file in policy.iterdir():
        if file.name not in left:
            file.unlink()
    if not left:
        policy.rmdir()
    done = cropi("export", run, "--to", "trl", "--out", out)
    done.done()
    assert "train.py POLICY" in done.out
    assert reason in done.out
    named = cropi("export", run, "--to", "trl", "--out", out, "--model", "given")
    named.done()
    assert "train.py given" in named.out
    assert reason not in named.out


@pytest.mark.parametrize("text", ["selection: 3", "verifiers: 3", "verifiers: {timeout: x}",
                                  "model: 3", "- 1", "a: ["])  # fmt: skip
def test_settings_of_a_run_that_cannot_be_read_are_named(
    cropi: Command, tmp_path: Path, text: str
) -> None:
    run = Path(shutil.copytree(finished(), tmp_path / "run"))
    (run / "artifacts.jsonl").unlink()
    (run / "config.yaml").write_text(text)
    cropi("export", run, "--to", "trl", "--out", tmp_path / "out").refused("config.yaml is damaged")


def test_a_baseline_is_not_exported_in_the_place_of_the_run_s_own_strategy(
    cropi: Command, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished(), tmp_path / "run"))
    (run / "artifacts.jsonl").unlink()
    shutil.rmtree(run / "arms" / "cropi")
    to = ("--to", "trl", "--out", tmp_path / "out")
    cropi("export", run, *to).refused("no selection of an arm 'cropi'", "--arm", "random")
    cropi("export", run, "--arm", "random", *to).done()


def test_scores_and_selections_are_exported_with_the_prompts_they_are_of(
    cropi: Command, tmp_path: Path
) -> None:
    stage = finished() / "arms" / "cropi" / "stages" / "0"
    for name in ("scores", "selection"):
        shutil.copy(stage / f"{name}.parquet", tmp_path)
    shutil.copy(finished() / "prompts" / "pool.parquet", tmp_path / "rows.parquet")
    out, rows = tmp_path / "out", ("--prompts", tmp_path / "rows.parquet")
    cropi("export", tmp_path / "selection.parquet", "--to", "verl", "--out", out).refused(
        "--prompts"
    )
    cropi("export", tmp_path / "selection.parquet", *rows, "--to", "verl", "--out", out).done()
    assert exported_ids(out) == read_selection(stage / "selection.parquet").prompt_ids
    scores = ("export", tmp_path / "scores.parquet", *rows, "--to", "verl", "--out", out)
    cropi(*scores, "--ratio", "0.25").done()
    assert 1 <= len(exported_ids(out)) <= read_scores(stage / "scores.parquet").pool_size // 4
    cropi(*scores, "--ratio", "0").refused("ratio")
    cropi(*scores, "--stage", "1").refused("--stage", "no effect")


def test_what_holds_no_selection_is_refused_in_one_sentence(cropi: Command, tmp_path: Path) -> None:
    to = ("--to", "trl", "--out", tmp_path / "out")
    cropi("export", finished(), "--stage", "5", *to).refused("no selection of stage 5", "0, 1")
    cropi("export", finished(), "--arm", "full", *to).refused("--arm can be one of cropi, random")
    cropi("export", finished(), "--ratio", "0.5", *to).refused("no effect")
    cropi("export", finished(), "--answer-column", "x", *to).refused("--prompts")
    cropi("export", finished(), "--to", "ppo", "--out", tmp_path / "out").refused("ppo", "verl")
    cropi("export", tmp_path / "nothing", *to).refused("does not exist")
    cropi("export", tmp_path, *to).refused("neither a run")
    (tmp_path / "study" / "cells").mkdir(parents=True)
    cropi("export", tmp_path / "study", *to).refused("a study of many runs")
    cropi("export", finished(), *to).done()
    again = ("--to", "verl", "--out", tmp_path / "again")
    cropi("export", tmp_path / "out", *again).refused("is an export")
