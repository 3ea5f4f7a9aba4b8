"""The loop: resumable at any point, the same bytes however often it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cropi.curriculum import train_stage as training_step
from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.store.files import read_jsonl
from cropi.store.tables import read_scores, read_selection
from support.tiny_runs import promised_bytes, tiny_config, write_config

KILL_POINTS = (
    "rollouts/pool.parquet.parts/000000.parquet",
    "arms/cropi/stages/0/policy.part",
    "arms/cropi/stages/1/policy.part",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """An uninterrupted run, with its full-data baseline."""
    return run(tiny_config(folder, "baselines=[full]"))


def run_until(config: Path, event: Path) -> None:
    """Start the run in a process of its own and kill it as soon as the file `event` is there."""
    command = [sys.executable, "-m", "cropi.cli", "run", str(config), "baselines=[full]"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not event.exists():
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_anywhere_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for event in KILL_POINTS:
        run_until(config, tmp_path / "runs" / "tiny" / event)
    resumed = run(tiny_config(tmp_path, "baselines=[full]"))
    expected = promised_bytes(finished)
    found = promised_bytes(resumed)
    # The config names the directory of the runs, which differs.
    assert [n for n in expected if expected[n] != found.get(n)] == ["config.yaml"]
    assert found.keys() == expected.keys()


def test_no_half_written_file_outlives_a_finished_run(finished: Path) -> None:
    assert [f for f in finished.rglob("*") if ".part" in f.name] == []


def test_the_same_seed_selects_the_same_and_another_seed_does_not(
    finished: Path, tmp_path: Path
) -> None:
    again = run(tiny_config(tmp_path, "curriculum.stages=1", "curriculum.steps_per_stage=1"))
    other = run(
        tiny_config(tmp_path, "curriculum={stages: 1, steps_per_stage: 1}", "seed=1", "name=b")
    )
    place = "arms/cropi/stages/0/selection.parquet"
    first, same, different = (read_selection(r / place) for r in (finished, again, other))
    assert first.prompt_ids == same.prompt_ids
    assert first.prompt_ids != different.prompt_ids


def test_a_finished_run_trains_and_samples_nothing_again(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished run did work again")

    before = promised_bytes(finished)
    monkeypatch.setattr(training_step.StageRun, "run", forbidden)
    monkeypatch.setattr("cropi.curriculum.score_prompts.make_scorer", forbidden)
    monkeypatch.setattr("cropi.curriculum.collect_rollouts.collect", forbidden)
    run(tiny_config(folder, "baselines=[full]"))
    assert promised_bytes(finished) == before


def test_another_config_is_refused_in_the_same_directory(folder: Path, finished: Path) -> None:
    before = promised_bytes(finished)
    with pytest.raises(InputError, match=r"selection\.ratio: 0\.1 -> 0\.2"):
        run(tiny_config(folder, "baselines=[full]", "selection.ratio=0.2"))
    assert promised_bytes(finished) == before


def test_changed_inputs_are_refused_in_the_same_directory(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [f'{{"prompt": "s{n}21=", "answer": "1", "id": {n}}}' for n in range(4)]
    pool.write_text("\n".join(rows))
    config = tiny_config(
        tmp_path,
        f"prompts.pool=[{{path: {pool}}}]",
        "selection.strategy=random",
        "curriculum.stages=1",
        "curriculum.steps_per_stage=1",
    )
    directory = run(config)
    before = promised_bytes(directory)
    pool.write_text("\n".join(rows).replace('"1"', '"2"'))
    with pytest.raises(InputError, match=r"prompts\.pool differ"):
        run(config)
    assert promised_bytes(directory) == before


def test_a_config_that_failed_before_any_work_may_be_mended(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a directory"):
        run(tiny_config(tmp_path, "model.path=./nowhere"))
    with pytest.raises(InputError, match="nosuch"):
        run(tiny_config(tmp_path, "selection.strategy=nosuch"))
    run(tiny_config(tmp_path, "curriculum.stages=1", "curriculum.steps_per_stage=1"))


def test_full_data_training_sees_every_prompt_before_any_twice(tmp_path: Path) -> None:
    visited: list[str] = []
    original = training_step._plan

    def recorded(*arguments: object) -> object:
        plan = original(*arguments)  # type: ignore[arg-type]
        visited.extend(p.prompt_id for p in plan.prompts)
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "_plan", recorded)
        run(
            tiny_config(
                tmp_path,
                "selection.strategy=full",
                "prompts.pool=[{pocket: [sort, shift], split: pool, size: 10}]",
            )
        )
    assert len(visited) == 24
    assert len(set(visited[:20])) == 20
    assert max(Counter(visited).values()) == 2


def test_every_phase_leaves_its_cost(finished: Path) -> None:
    costs = [row for row in read_jsonl(finished / "metrics.jsonl") if row["kind"] == "cost"]
    phases = {(row["arm"], row["phase"]) for row in costs}
    assert phases == {
        ("", "rollouts"),
        ("", "evaluation"),
        ("cropi", "scoring"),
        ("cropi", "training"),
        ("cropi", "evaluation"),
        ("full", "training"),
        ("full", "evaluation"),
    }
    assert all(row["flops"] > 0 for row in costs)
    assert read_jsonl(finished / "costs.jsonl") == [row for row in costs if not row["arm"]]


def test_damaged_files_of_a_run_are_made_again(folder: Path, finished: Path) -> None:
    before = promised_bytes(finished)
    (finished / "arms/cropi/stages/1/selection.parquet").write_bytes(b"PAR1 torn")
    (finished / "arms/cropi/stages/0/scores.parquet").write_bytes(b"")
    with (finished / "timings.jsonl").open("a") as handle:
        handle.write('{"phase": "clock", "ar')
    run(tiny_config(folder, "baselines=[full]"))
    assert promised_bytes(finished) == before


@pytest.mark.parametrize("method", ["exact", "adaptive"])
def test_directions_follow_adam_from_the_second_stage_on(tmp_path: Path, method: str) -> None:
    config = tiny_config(
        tmp_path,
        "influence.precondition=adam",
        f"influence.sketch={method}",
        "influence.dim=64",
        "evaluation.every=10",
    )
    identities = [read_scores(f).identity for f in sorted(run(config).rglob("scores.parquet"))]
    assert ["preconditioner" in identity for identity in identities] == [False, True]


def test_lora_and_warmup_run_two_stages_and_resume(tmp_path: Path) -> None:
    overrides = (
        "training.lora.r=4",
        "warmup.steps=2",
        "warmup.batch_size=4",
        "curriculum.steps_per_stage=2",
        "prompts.pool=[{pocket: [sort, shift], split: pool, size: 30}]",
    )
    directory = run(tiny_config(tmp_path, *overrides))
    before = promised_bytes(directory)
    policies = [directory / f"arms/cropi/stages/{i}/policy" for i in (0, 1)]
    assert all((p / "adapter_model.safetensors").is_file() for p in policies)
    assert not any((p / "model.safetensors").exists() for p in policies)
    shared = {row["phase"]: row["tokens_backward"] for row in read_jsonl(directory / "costs.jsonl")}
    assert 2 * 4 * 5 <= shared["warmup"] <= 2 * 4 * 20

    from peft import AutoPeftModelForCausalLM

    for policy in policies:
        assert AutoPeftModelForCausalLM.from_pretrained(policy) is not None
    (policies[1] / "cropi_stage.json").unlink()  # as if killed before the last rename
    (directory / "costs.jsonl").unlink()
    run(tiny_config(tmp_path, *overrides))
    assert promised_bytes(directory) == before


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.engine.grpo.no_such=1", "training.engine.grpo.no_such"),
        ("training.engine.grpo.num_iterations=2", "training.engine.grpo.num_iterations"),
        ("training.engine.grpo.seed=2", "the run's seed"),
        ("training.engine.grpo.lr_scheduler_type=triangle", "triangle"),
        ("training.engine.grpo.loss_type=gppo", "loss_type"),
        ("training.engine.grpo.per_device_train_batch_size=3", "divisor"),
        ("training.engine=nosuch", "training.engine"),
        ("rollouts.engine=nosuch", "nosuch"),
        ("rollouts.engine=:x", ":x"),
        ("baselines=[nosuch]", "nosuch"),
        ("selection.strategy=os:path", "is not a strategy"),
        ("selection.strategy=no_such_module:Mine", "no_such_module"),
        ("verifiers.default=nosuch", "nosuch"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_made(
    tmp_path: Path, override: str, told: str
) -> None:
    with pytest.raises(InputError, match=told.replace("'", ".")):
        run(tiny_config(tmp_path, override))
    made = tmp_path / "runs" / "tiny"
    assert not (made / "rollouts").exists()
    assert not (made / "manifest.json").exists()
