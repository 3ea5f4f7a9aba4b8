"""The loop: resumable at any point, the same bytes however often it was killed."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console

from cropi import plugins
from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.influence.scorer import Scorer
from cropi.progress import ProgressReporter
from cropi.store import lease
from cropi.store.tables import read_scores
from cropi.training import StageOutcome, StagePlan
from support.fakes import FakeEngine, FakeTrainer
from support.tiny_runs import (
    assert_every_phase_leaves_its_cost,
    fake_config,
    promised_bytes,
    run_in,
    tiny_config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> tuple[Path, list[str]]:
    """An uninterrupted run, with its full-data baseline, and the names of all that it renamed."""
    renamed: dict[str, None] = {}
    rename = os.replace

    def noted(source: str | Path, target: str | Path) -> None:
        renamed.setdefault(str(target))
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", noted)
        run = run_in(folder, fake_config(folder, "baselines=[full]"))
    return run, list(renamed)


@pytest.fixture(scope="module")
def finished(recorded: tuple[Path, list[str]]) -> Path:
    return recorded[0]


def test_a_stages_line_names_the_engine_that_trains(tmp_path: Path) -> None:
    lines = StringIO()
    run(
        fake_config(tmp_path, "curriculum.stages=1"),
        reporter=ProgressReporter(Console(file=lines, width=200)),
    )
    assert "  cropi stage 0 support-fakes-FakeTrainer training " in lines.getvalue()
    assert "GRPO" not in lines.getvalue()


class Killed(BaseException):
    """What no part of a run may catch."""


class Killer:
    """Raises at the first rename of each of these files, and leaves a torn `.part` behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, targets: list[str]) -> None:
        self.left = set(targets)
        self.torn: tuple[Path, bytes | None] | None = None
        self.rename = os.replace
        monkeypatch.setattr(os, "replace", self)

    def __call__(self, source: str | Path, target: str | Path) -> None:
        if str(target) not in self.left:
            self.rename(source, target)
            return
        self.left.remove(str(target))
        part = Path(source)
        self.torn = part, None if part.is_dir() else part.read_bytes()[:-1]
        raise Killed

    def tear(self, folder: Path) -> None:
        """Leave what a process that is killed cannot clean up."""
        assert self.torn is not None
        part, content = folder / self.torn[0], self.torn[1]
        part.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            part.mkdir()
            (part / "model.safetensors").write_bytes(b"torn")
        else:
            part.write_bytes(content)


def test_a_run_killed_at_the_rename_of_a_file_ends_with_the_same_bytes(
    recorded: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every third, the first and the last; other files of a stage are third in the next one."""
    finished, renamed = recorded
    config = fake_config(tmp_path, "baselines=[full]")
    targets = [*renamed[:-1:3], renamed[-1]]
    killer, attempts = Killer(monkeypatch, targets), 0
    while True:
        attempts += 1
        try:
            resumed = run_in(tmp_path, config)
        except Killed:
            killer.tear(tmp_path)
        else:
            break
    expected = promised_bytes(finished)
    assert promised_bytes(resumed) == expected
    assert (attempts, killer.left) == (len(targets) + 1, set())


def test_every_file_of_a_run_is_renamed(recorded: tuple[Path, list[str]]) -> None:
    """But the lock and those that come with the policy's folder."""
    finished, renamed = recorded
    names = {Path(name).relative_to("runs/tiny").as_posix() for name in renamed}
    promised = promised_bytes(finished)
    assert {n for n in promised if "/policy/" not in n and n != ".lock"} <= names
    assert {f"arms/{arm}/stages/{i}/policy" for arm in ("cropi", "full") for i in (0, 1)} <= names


def test_no_half_written_file_outlives_a_finished_run(finished: Path) -> None:
    assert [f for f in finished.rglob("*") if ".part" in f.name] == []


def test_a_finished_run_trains_and_samples_nothing_again(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished run did work again")

    before = promised_bytes(finished)
    monkeypatch.setattr(FakeTrainer, "train", forbidden)
    monkeypatch.setattr(FakeEngine, "generate", forbidden)
    monkeypatch.setattr(Scorer, "score", forbidden)
    run_in(folder, fake_config(folder, "baselines=[full]"))
    assert promised_bytes(finished) == before


def test_another_config_is_refused_in_the_same_directory(folder: Path, finished: Path) -> None:
    before = promised_bytes(finished)
    with pytest.raises(InputError, match=r"selection\.ratio: 0\.1 -> 0\.2"):
        run_in(folder, fake_config(folder, "baselines=[full]", "selection.ratio=0.2"))
    assert promised_bytes(finished) == before


def test_changed_inputs_are_refused_in_the_same_directory(tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = [f'{{"prompt": "s{n}21=", "answer": "1", "id": {n}}}' for n in range(4)]
    pool.write_text("\n".join(rows))
    config = fake_config(
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


@pytest.mark.parametrize("changed_file", ["own.py", "beside_own.py"])
@pytest.mark.parametrize("setting", ["verifiers.default", "selection.strategy"])
def test_changed_code_of_the_users_own_is_refused_in_the_same_directory(
    tmp_path: Path, setting: str, changed_file: str
) -> None:
    (tmp_path / "beside_own.py").write_text("SAME = 1 == 1")
    file = tmp_path / "own.py"
    code = """
    from beside_own import SAME
    from cropi.selection.baselines import Random

    class Mine(Random):
        pass

    def grade(solution_str, ground_truth):
        return float(solution_str == ground_truth)
    """
    file.write_text(textwrap.dedent(code))
    name = "grade" if setting == "verifiers.default" else "Mine"
    once = "curriculum={stages: 1, steps_per_stage: 1}"
    config = fake_config(tmp_path, "selection.strategy=random", once, f"{setting}={file}:{name}")
    directory = run(config)
    before = promised_bytes(directory)
    assert run(config) == directory
    changed = tmp_path / changed_file
    changed.write_text(changed.read_text().replace("==", "!="))
    with pytest.raises(InputError, match=rf"code\.{setting.removesuffix('.default')} differ"):
        run(config)
    assert promised_bytes(directory) == before


FAILS_LATE = """
import numpy as np
from cropi.selection.baselines import Random
from support.fakes import FakeTrainer

class Mine(Random):
    def select(self, context):
        selection = super().select(context)
        if context.stage == 1:
            selection.scores = selection.scores * BROKEN
        return selection

class Trainer(FakeTrainer):
    def train(self, plan, *arguments):
        if plan.first_step and np.isnan(BROKEN):
            raise RuntimeError("cannot go on")
        return super().train(plan, *arguments)
"""


@pytest.mark.parametrize(("setting", "name", "message"), [
    ("selection.strategy", "Mine", "has nan among scores"),
    ("training.engine", "Trainer", "train raised RuntimeError: cannot go on"),
])  # fmt: skip
def test_a_run_that_a_users_plug_in_ended_continues_with_the_mended_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str, message: str
) -> None:
    file = tmp_path / "own.py"
    file.write_text(FAILS_LATE.replace("BROKEN", "np.nan"))
    config = fake_config(tmp_path, "selection.strategy=random", f"{setting}={file}:{name}")
    with pytest.raises(InputError, match=message):
        run(config)
    (first,) = config.directory.glob("arms/*/stages/0/policy/model.safetensors")
    trained = first.stat().st_mtime_ns
    monkeypatch.setattr(plugins, "_files", {})  # as in another process
    file.write_text(FAILS_LATE.replace("BROKEN", "1.0"))
    assert run(config) == config.directory
    assert first.stat().st_mtime_ns == trained
    file.write_text(file.read_text() + "# changed, and nothing had failed")
    with pytest.raises(InputError, match=rf"code\.{setting} differ"):
        run(config)


def test_a_folder_that_is_moved_away_from_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fake_config(tmp_path)

    def move(*_: object) -> None:
        config.directory.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("cropi.curriculum.starting_point._sizes", move)
    with pytest.raises(InputError, match=r"tiny was moved or removed while a run was working"):
        run(config)


@pytest.mark.parametrize("place", ["config.yaml", "prompts", "arms"])
def test_what_no_run_has_made_is_never_replaced(tmp_path: Path, place: str) -> None:
    config = fake_config(tmp_path)
    config.directory.mkdir(parents=True)
    (config.directory / "log.txt").write_text("of this run, as tee writes it")
    (config.directory / place).write_text("mine: 1")
    with pytest.raises(InputError, match=rf"tiny holds {place}, which no run has made"):
        run(config)
    assert (config.directory / place).read_text() == "mine: 1"


def test_a_config_that_failed_before_any_work_may_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a directory"):
        run(fake_config(tmp_path, "model.path=./nowhere"))
    with pytest.raises(InputError, match="nosuch"):
        run(fake_config(tmp_path, "selection.strategy=nosuch"))
    run(fake_config(tmp_path, "curriculum.stages=1", "curriculum.steps_per_stage=1"))


def test_full_data_training_sees_every_prompt_before_any_twice(tmp_path: Path) -> None:
    visited: list[str] = []
    train = FakeTrainer.train

    def recorded(trainer: FakeTrainer, plan: StagePlan, *rest: Any) -> StageOutcome:
        visited.extend(p.prompt_id for p in plan.prompts)
        return train(trainer, plan, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTrainer, "train", recorded)
        run(
            fake_config(
                tmp_path,
                "selection.strategy=full",
                "prompts.pool=[{pocket: [sort, shift], split: pool, size: 10}]",
            )
        )
    assert len(visited) == 24
    assert len(set(visited[:20])) == 20
    assert max(Counter(visited).values()) == 2


def test_every_phase_leaves_its_cost(finished: Path) -> None:
    assert_every_phase_leaves_its_cost(finished, "cropi", "full")


def test_damaged_files_of_a_run_are_made_again(folder: Path, finished: Path) -> None:
    before = promised_bytes(finished)
    (finished / "arms/cropi/stages/1/selection.parquet").write_bytes(b"PAR1 torn")
    (finished / "arms/cropi/stages/0/scores.parquet").write_bytes(b"")
    with (finished / "timings.jsonl").open("a") as handle:
        handle.write('{"phase": "clock", "ar')
    run_in(folder, fake_config(folder, "baselines=[full]"))
    assert promised_bytes(finished) == before


@pytest.mark.parametrize("sketch", ["exact", "{name: adaptive, dim: 64}"])
def test_directions_follow_adam_from_the_second_stage_on(tmp_path: Path, sketch: str) -> None:
    config = fake_config(
        tmp_path,
        "selection.strategy=ranking",
        "influence.precondition=adam",
        f"influence.sketch={sketch}",
        "evaluation.every=10",
    )
    identities = [read_scores(f).identity for f in sorted(run(config).rglob("scores.parquet"))]
    assert ["preconditioner" in identity for identity in identities] == [False, True]


@pytest.mark.parametrize(
    ("override", "message"),
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
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("'", ".")):
        run(tiny_config(tmp_path, override))
    made = tmp_path / "runs" / "tiny"
    assert not (made / "rollouts").exists()
    assert not (made / "manifest.json").exists()


def test_a_run_in_a_store_goes_on_on_another_machine_with_the_same_objects(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, starts, train = fsspec.filesystem("memory"), list[str](), FakeTrainer.train
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    config = fake_config(
        tmp_path, f"out={bucket}/runs", "curriculum.refresh=all", "curriculum.keep_checkpoints=last"
    )

    def stored_files() -> dict[str, bytes]:
        names = [name for name in memory.find("/bucket/runs") if "/.lease/" not in name]
        return {n: memory.cat_file(n) for n in names if not n.endswith("timings.jsonl")}

    def on_machine(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    def killed(self: FakeTrainer, plan: StagePlan, *more: Any) -> StageOutcome:
        starts.append(plan.start)
        if len(starts) == 2:
            raise Killed
        return train(self, plan, *more)

    on_machine("one")
    run(config)
    expected = stored_files()
    assert f"{config.directory}".encode() not in b"".join(expected.values())
    memory.rm("/bucket/runs", recursive=True)
    monkeypatch.setattr(FakeTrainer, "train", killed)
    on_machine("two")
    with pytest.raises(Killed):
        run(config)
    on_machine("three")
    run(config)
    assert len(starts) == 3  # the first stage once, the second twice
    assert stored_files() == expected
