"""Exports in the trainers themselves: TRL always, verl and verifiers where they are installed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import cropi
from cropi.exchange.exports import export_selection
from cropi.pocket import rows
from cropi.prompts.formats import to_prompt
from cropi.prompts.settings import PromptSource
from cropi.schema import Prompt, Selection
from cropi.verifiers.settings import VerifiersConfig
from support.chat_model import TEMPLATE
from support.tiny_runs import untrained

STEP = ("max_steps=1", "num_generations=2", "per_device_train_batch_size=2")
QUIET = ("report_to=none", "save_strategy=no", "max_completion_length=4")


@pytest.fixture(scope="module")
def pool() -> list[Prompt]:
    source = PromptSource(pocket=["sort"])
    made = rows("pool", ["sort"], 12, 0)
    return [to_prompt(row, source, f"row {n}", "sort") for n, row in enumerate(made)]


def export(pool: list[Prompt], trainer: str, out: Path) -> list[str]:
    ids = [prompt.prompt_id for prompt in pool[3:7]]
    judged = VerifiersConfig(default="exact", workers=1)
    export_selection(Selection(ids, np.linspace(1, 0, 4)), pool, trainer, out, verifiers=judged)
    return ids


def test_grpo_of_trl_trains_on_an_export(pool: list[Prompt], tmp_path: Path) -> None:
    export(pool, "trl", tmp_path / "out")
    script = [sys.executable, str(tmp_path / "out" / "train.py"), untrained()]
    done = subprocess.run(
        [*script, *STEP, *QUIET], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'rewards/verifier/mean'" in done.stdout


def test_grpo_of_trl_trains_on_the_control_of_an_export(
    pool: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(pool, "trl", tmp_path / "out")
    script = tmp_path / "out" / "train.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), untrained(), "control", *STEP, *QUIET])
    runpy.run_path(str(script), run_name="__main__")
    sys.modules.pop("rewards")
    assert "'rewards/verifier/mean'" in capsys.readouterr().out


def test_the_data_set_of_verl_holds_every_row(pool: list[Prompt], tmp_path: Path) -> None:
    data = pytest.importorskip("verl.utils.dataset.rl_dataset", reason="verl is not installed")
    omegaconf = pytest.importorskip("omegaconf")
    from transformers import AutoTokenizer
    from verl.trainer.ppo.reward import get_custom_reward_fn

    ids = export(pool, "verl", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(untrained())
    tokenizer.chat_template = TEMPLATE
    settings = {
        "max_prompt_length": 64,
        "cache_dir": str(tmp_path),
        "filter_overlong_prompts_workers": 1,
    }
    file = str(tmp_path / "out" / "selection.parquet")
    loaded = data.RLHFDataset(file, tokenizer, omegaconf.OmegaConf.create(settings))
    assert [row["extra_info"]["prompt_id"] for row in map(loaded.__getitem__, range(4))] == ids
    assert len(data.collate_fn([loaded[0], loaded[1]])["raw_prompt"]) == 2
    function = {"path": str(tmp_path / "out" / "rewards.py"), "name": "compute_score"}
    reward = {"reward": {"custom_reward_function": function}}
    score = get_custom_reward_fn(omegaconf.OmegaConf.create(reward))
    row = loaded[2]
    for answer, expected in ((row["answer"], 1.0), ("no", 0.0)):
        given = score(
            row["data_source"], answer, row["reward_model"]["ground_truth"], row["extra_info"]
        )
        assert given["score"] == expected


TASKSET = """
import asyncio, itertools, json, sys
from types import SimpleNamespace
from verifiers.v1.utils.loaders import taskset_class

taskset = taskset_class("cropi-selection")
config = sys.modules["cropi_selection"].SelectionConfig
selected, control = (list(taskset(config(rows=rows))) for rows in ("selection", "control"))
replies = [SimpleNamespace(last_reply=text) for text in (selected[1].data.answer, "no")]
rewards = [asyncio.run(selected[1].verifier(reply)) for reply in replies]
live = taskset_class("cropi-live")
streamed = itertools.islice(live(config(id="cropi-live")), 6)
keys = [[task.key for task in tasks] for tasks in (selected, streamed)]
print(json.dumps([live.INFINITE, *keys, len(control), rewards]))
"""


def test_verifiers_loads_an_export_as_a_taskset(pool: list[Prompt], tmp_path: Path) -> None:
    try:
        metadata.version("verifiers")
    except metadata.PackageNotFoundError:
        pytest.skip("verifiers is not installed")
    ids = export(pool, "prime-rl", tmp_path / "out")
    # In a process of its own: a folder of our tests has the name of the package.
    path = os.pathsep.join([str(tmp_path / "out"), str(Path(cropi.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", TASKSET],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, ids, [*ids, *ids[:2]], 4, [1.0, 0.0]]
