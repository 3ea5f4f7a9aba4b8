"""Guided stages in an unmodified GRPOTrainer: every stage trains on its own selection."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig

import cropi
from cropi.errors import InputError
from cropi.integrations.trainer_rows import rows_by_id
from cropi.integrations.trl import Guidance, Positions, sampling_alone
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.store.tables import read_selection
from support.guided_training import PROMPTS, QUIET, STAGE, STEPS, Guided, Remembering, data
from support.tiny_runs import untrained

REMEMBERING: Any = {
    "selection": SelectionConfig(
        strategy=StrategyChoice.of("support.guided_training:Remembering"), ratio=0.2
    )
}


def batched(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Guided]:
    out = tmp_path_factory.mktemp("guided")
    guided = Guided(out)
    guided.trainer.train()
    return out, guided


def stage_file(out: Path, stage: int) -> Path:
    return out / "cropi" / "stages" / str(stage) / "selection.parquet"


def selected(out: Path, guided: Guided, stage: int) -> list[str]:
    """The texts of a stage's prompts."""
    ids = read_selection(stage_file(out, stage)).prompt_ids
    return [guided.guidance.rows[i]["prompt"] for i in ids]


def test_every_step_trains_on_the_selection_of_its_stage(finished: tuple[Path, Guided]) -> None:
    out, guided = finished
    assert [step for step, _ in guided.seen] == list(range(STEPS))
    for stage in range(STEPS // STAGE):
        trained = [p for step, prompts in guided.seen if step // STAGE == stage for p in prompts]
        counts = Counter(trained)
        assert counts.keys() <= set(selected(out, guided, stage))
        assert max(counts.values()) - min(counts.values()) <= 1, "epochs are whole"
        assert len(trained) == STAGE * PROMPTS


def test_responses_for_influence_are_sampled_once_and_judged_by_the_trainers_functions(
    finished: tuple[Path, Guided],
) -> None:
    _, guided = finished
    assert guided.sampled == 2 * (len(guided.guidance.rows) + 8)


def test_what_was_selected_is_in_the_trainers_log(finished: tuple[Path, Guided]) -> None:
    _, guided = finished
    rows = [row for row in guided.trainer.state.log_history if "cropi/stage" in row]
    assert [row["cropi/stage"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["cropi/selected"] >= 1
        assert row["cropi/influence_selected/sort"] >= row["cropi/influence/sort"]
        assert "reward" in row


def continued(guided: Guided, folder: Path, step: int, **settings: Any) -> Guided:
    """A training that goes on from a checkpoint in a copy of `guided`'s output, as that did."""
    # What the first of these had not selected yet when it was stopped.
    for stage in range((step + 1) // STAGE + 1, STEPS // STAGE):
        shutil.rmtree(folder / "cropi" / "stages" / str(stage))
    resumed = Guided(folder, **settings)
    resumed.trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert resumed.seen == guided.seen[step:]
    for name, value in guided.weights().items():
        assert torch.equal(resumed.weights()[name], value), name
    return resumed


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_training_that_was_stopped_ends_with_the_same_weights(
    finished: tuple[Path, Guided], tmp_path: Path, step: int
) -> None:
    out, guided = finished
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(again / f"checkpoint-{later}")
    assert continued(guided, again, step).sampled == 0


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Guided]:
    out = tmp_path_factory.mktemp("remembering")
    guided = Guided(out, **REMEMBERING)
    guided.trainer.train()
    return out, guided


def test_stages_are_selected_by_what_trainings_own_groups_were_rewarded(
    remembering: tuple[Path, Guided],
) -> None:
    _, guided = remembering
    rows, trained = guided.guidance.rows, guided.guidance.trained
    groups = [group for batch in trained.before(99).values() for group in batch]
    assert [(rows[g.prompt_id]["prompt"], g.rewards.tolist()) for g in groups] == guided.rewarded
    rounds = guided.guidance._trained(2, 2 * STAGE - 1)
    assert [len(groups) for groups in rounds] == [STAGE * PROMPTS, (STAGE - 1) * PROMPTS]
    stage, read_ahead = 2 * STAGE * PROMPTS, 2 * PROMPTS
    assert Remembering.rounds[2] == [2 * len(rows), stage, stage - read_ahead]


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_training_that_remembers_and_was_stopped_ends_with_the_same_weights(
    remembering: tuple[Path, Guided], tmp_path: Path, step: int
) -> None:
    """Rewards that the first attempt wrote after the checkpoint change nothing."""
    out, guided = remembering
    again = tmp_path / "again"
    shutil.copytree(out, again)
    continued(guided, again, step, **REMEMBERING)


def test_two_processes_train_one_order_together(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "guided_training.py"
    folders = [str(script.parents[1]), str(Path(cropi.__file__).parents[1])]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "--standalone", str(script), str(tmp_path), untrained()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"process-{n}.json").read_text()) for n in (0, 1))
    assert one["weights"] == two["weights"]
    assert one["sampled"] == two["sampled"]
    texts = {row["prompt"] for row in data("pool", ["sort", "add"], 24)}
    for (step, left), (same, right) in zip(one["seen"], two["seen"], strict=True):
        assert step == same
        size = len(read_selection(stage_file(tmp_path, step // STAGE)).prompt_ids)
        assert len({*left, *right}) == min(PROMPTS, size), "no prompt twice before all were seen"
        assert {*left, *right} <= texts
    assert not list((tmp_path / "cropi" / "rollouts").glob("*-of-*"))
    lines = (tmp_path / "cropi" / "training_rewards.jsonl").read_text().splitlines()
    written = [pair for line in lines for pair in batched(json.loads(line)["rewards"], 2)]
    shares = [batched(each["rewarded"], PROMPTS // 2) for each in (one, two)]
    sampled = [group for both in zip(*shares, strict=True) for share in both for group in share]
    assert [rewards for _, rewards in sampled] == written


@given(
    accumulation=st.integers(1, 6),
    generations=st.integers(1, 6),
    iterations=st.integers(1, 3),
    steps=st.integers(1, 40),
    stage=st.integers(1, 12),
)
def test_a_batch_of_responses_belongs_to_one_stage(
    accumulation: int, generations: int, iterations: int, steps: int, stage: int
) -> None:
    args: Any = type("Args", (), {})()
    args.max_steps, args.gradient_accumulation_steps = steps, accumulation
    args.steps_per_generation, args.num_iterations = generations, iterations
    args.generation_batch_size, args.num_generations = 24, 4
    try:
        positions = Positions.of(args, stage)
    except InputError:
        assert stage * accumulation % (generations * iterations)
        return
    assert positions.of_stage % positions.of_batch == 0
    passes = generations * iterations
    for step in range(steps):
        batch = step * accumulation // passes
        assert positions.of_batch * batch // positions.of_stage == step // stage
    assert positions.batches * passes >= steps * accumulation


def test_a_model_in_training_is_left_as_it_was(tmp_path: Path) -> None:
    guided = Guided(tmp_path)
    model, tokenizer = guided.trainer.model, guided.trainer.processing_class
    model.train()
    config, side, state = model.generation_config, tokenizer.padding_side, torch.get_rng_state()
    with sampling_alone(model, tokenizer, 0) as policy:
        assert not policy.model.training
        torch.rand(3)
    assert model.training
    assert model.generation_config is config
    assert tokenizer.padding_side == side
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_guided_is_refused(tmp_path: Path) -> None:
    def args(**more: Any) -> GRPOConfig:
        settings = {"output_dir": str(tmp_path), "max_steps": 4, **QUIET, **more}
        return GRPOConfig(**settings)

    pool, targets = data("pool", ["sort"], 8), {"sort": data("validation", ["sort"], 4)}
    with pytest.raises(InputError, match="set max_steps"):
        Guidance(args(max_steps=-1), pool, targets, 2)
    with pytest.raises(InputError, match="choose a multiple of 2"):
        Guidance(args(num_iterations=2), pool, targets, 3)
    for wrong in ("8", 2.0, 0, None):
        with pytest.raises(InputError, match=r"steps_per_stage=.*: give a whole number from 1 on"):
            Guidance(args(), pool, targets, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="set it to 0"):
        Guidance(args(dataloader_num_workers=2), pool, targets, 2)
    for share in (1.5, "0.2", float("nan")):
        with pytest.raises(InputError, match="not a share of the pool"):
            Guidance(args(), pool, targets, 2, ratio=share)  # type: ignore[arg-type]
    refused = (
        r"selection='random' is not a SelectionConfig; "
        r"give SelectionConfig\(strategy='random'\)"
    )
    with pytest.raises(InputError, match=refused):
        Guidance(args(), pool, targets, 2, selection=cast("Any", "random"))
    with pytest.raises(InputError, match="targets is of the type Dataset; give names too"):
        Guidance(args(), pool, cast("Any", pool), 2)
    with pytest.raises(InputError, match="pool is 'train_rows'; give a Dataset"):
        Guidance(args(), cast("Any", "train_rows"), targets, 2)
    with pytest.raises(InputError, match=r"the row has \['question'\]"):
        Guidance(args(), cast("Any", [{"question": "1+1="}]), targets, 2)
    with pytest.raises(InputError, match="'pool' and 'pool'"):
        Guidance(args(), pool, {"pool": pool}, 2)
    with pytest.raises(InputError, match="has no rows"):
        rows_by_id("pool", Dataset.from_list([]))
    with pytest.raises(InputError, match="row 2 has None as its prompt"):
        rows_by_id("pool", Dataset.from_list([{"prompt": "a"}, {"prompt": None}]))
    with pytest.raises(InputError, match="row 2 has the prompt_id 'x' of another row"):
        rows_by_id("pool", Dataset.from_list([{"prompt": p, "prompt_id": "x"} for p in "ab"]))
    guidance = Guidance(args(), pool, targets, 2)
    with pytest.raises(InputError, match="attach"):
        guidance.dataset[0]


def test_rows_are_named_by_their_content_where_that_can_be_written() -> None:
    nan = float("nan")
    rows = [{"prompt": "a", "x": nan}, {"prompt": "a", "x": float("nan")}, {"prompt": "b", "x": 1}]
    assert len(rows_by_id("pool", Dataset.from_list(rows))) == 2, "equal rows are one"
    picture = {"prompt": "a", "picture": b"\x00"}
    with pytest.raises(InputError, match=r"row 1 has a value of type bytes .* give .* prompt_id"):
        rows_by_id("pool", Dataset.from_list([picture]))
    assert list(rows_by_id("pool", Dataset.from_list([{**picture, "prompt_id": "p"}]))) == ["p"]
    with pytest.raises(InputError, match=r"pool row 2 is 'b'; give rows"):
        rows_by_id("pool", cast("Any", [{"prompt": "a"}, "b"]))


def test_ids_of_pool_and_targets_may_be_the_same_numbers() -> None:
    rows = Dataset.from_list([{"prompt": "a", "prompt_id": 1}, {"prompt": "b", "prompt_id": 2}])
    assert list(rows_by_id("pool", rows)) == ["1", "2"]
    assert list(rows_by_id("aime", rows, "aime/")) == ["aime/1", "aime/2"]


def test_the_default_samples_as_much_of_the_pool_as_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("what was scored while it was sampled was scored again")

    monkeypatch.setattr("cropi.integrations.guided_stages.score", forbidden)
    strategy = StrategyChoice.of("cropi", sample=6, most=18)
    selection = SelectionConfig(strategy=strategy, ratio=0.2)
    guided = Guided(tmp_path, selection=selection)
    guided.trainer.train()
    files = sorted(f.name for f in (tmp_path / "cropi/rollouts").glob("pool*"))
    assert files == ["pool.0-6.parquet", "pool.12-18.parquet", "pool.6-12.parquet"]
    assert guided.sampled == (18 + 8) * 2
    assert all(selected(tmp_path, guided, stage) for stage in range(3))
