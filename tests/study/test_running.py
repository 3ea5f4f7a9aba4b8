"""A study, stopped, resumed and extended: in this process, and once in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cropi.cli.compare import parse_seeds
from cropi.config import RunConfig, load_config
from cropi.errors import InputError
from cropi.execution import Inline, Processes, WorkUnit, usable_cores
from cropi.report import write_run_report, write_study_report
from cropi.store.files import file_hash, read_jsonl
from cropi.store.run_directory import RunDirectory
from cropi.store.tables import read_selection
from cropi.study.cells import is_finished, link_shared_files
from cropi.study.runner import run_study, run_threads
from cropi.study.study_plan import StudyPlan
from support.process_checks import alive
from support.tiny_runs import FAKE, fake_config, untrained, write_config

FAST = ("curriculum.steps_per_stage=2", "evaluation.every=2")
VARIANT = (
    "compare.variants={wider: {selection.strategy: ranking, selection.ratio: 0.5}, "
    "r.5: {selection.ratio: 0.5}, r-5: {selection.ratio: 0.5}, seeded: {seed: 7}}"
)
CRASHING = """
class Crashing:
    scoring = "never"
    def select(self, context):
        raise RuntimeError("no luck")
"""


def plan(folder: Path, *labels: str, seeds: tuple[int, ...] = (0, 1)) -> StudyPlan:
    return StudyPlan.of(fake_config(folder, *FAST, VARIANT), list(labels), list(seeds))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    """A study of three labels and two seeds."""
    study = run_study(plan(folder, "random", "wider"), executor=Inline(), draw=write_run_report)
    write_study_report(study)
    return study


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the same study, two runs at a time in processes of their own.

    No strategy of it looks at the pool, so that the pool is not rolled out.
    """
    part = plan(tmp_path_factory.mktemp("processes"), "random", seeds=(0,))
    return run_study(part, jobs=2, draw=write_run_report)


def cell(root: Path, label: str, seed: int) -> Path:
    return root / "cells" / label / f"seed-{seed}"


def test_every_cell_is_a_run_of_its_own_with_the_baseline_added(root: Path) -> None:
    labels = sorted(path.name for path in (root / "cells").iterdir())
    assert labels == ["full", "random", "wider"]
    for label in labels:
        for seed in (0, 1):
            run = cell(root, label, seed)
            assert (run / "report.html").is_file()
            assert (run / "log.txt").read_text().count("stage 1 support-fakes-FakeTrainer") == 1
            config = load_config(str(run / "config.yaml"))
            assert (config.seed, config.data_seed) == (seed, 0)
    assert load_config(str(cell(root, "wider", 0) / "config.yaml")).selection.ratio == 0.5


def test_a_seeds_cells_share_rollouts_and_seeds_share_prompts(root: Path) -> None:
    def content(name: str, run: Path) -> str:
        return file_hash(run / f"{name}/pool.parquet")

    for seed in (0, 1):
        shared = content("rollouts", root / "shared" / f"seed-{seed}")
        assert {content("rollouts", cell(root, label, seed)) for label in ("full", "wider")} == {
            shared
        }
    runs = [cell(root, "full", seed) for seed in (0, 1)]
    assert len({content("prompts", run) for run in runs}) == 1
    assert len({content("rollouts", run) for run in runs}) == 2
    orders = [
        read_selection(cell(root, "random", s) / "arms/random/stages/0/selection.parquet")
        for s in (0, 1)
    ]
    assert orders[0].prompt_ids != orders[1].prompt_ids


def test_rollouts_are_paid_for_by_the_cells_that_use_them(root: Path) -> None:
    for label, arms in (("full", []), ("random", []), ("wider", ["ranking"])):
        run = cell(root, label, 0)
        rows = [r for r in read_jsonl(run / "costs.jsonl") if r["phase"] == "rollouts"]
        assert [r["arms"] for r in rows] == ([arms, arms] if arms else [])
        timings = [r for r in read_jsonl(run / "timings.jsonl") if r["phase"] == "rollouts"]
        assert [r["arms"] for r in timings] == [arms, arms]


def test_the_numbers_of_a_study_name_every_strategy(root: Path) -> None:
    numbers = json.loads((root / "study.json").read_text())
    assert list(numbers["strategies"]) == ["full", "random", "wider"]
    assert yaml.safe_load((root / "study.yaml").read_text())["compare"]["seeds"] == [0, 1]


def test_a_restart_runs_what_is_missing_and_nothing_else(folder: Path, root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (root / "cells").rglob("log.txt")}
    run_study(plan(folder, "random", "wider", "oracle", seeds=(0,)), executor=Inline())
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (cell(root, "oracle", 0) / "finished.json").is_file()
    assert not cell(root, "oracle", 1).exists()


def test_a_run_that_was_interrupted_ends_with_the_same_weights(folder: Path, root: Path) -> None:
    weights = cell(root, "random", 1) / "arms/random/stages/1/policy/model.safetensors"
    expected = file_hash(weights)
    (cell(root, "random", 1) / "finished.json").unlink()
    weights.with_name("cropi_stage.json").unlink()
    weights.unlink()
    # The first stage's weights were removed at the end of the second; they are trained again.
    (cell(root, "random", 1) / "arms/random/stages/0/policy/cropi_stage.json").unlink()
    run_study(plan(folder, "random", "wider"), executor=Inline())
    assert file_hash(weights) == expected


def test_a_run_in_a_process_of_its_own_trains_the_same_weights(
    root: Path, in_processes: Path
) -> None:
    for label in ("full", "random"):
        here, there = (cell(study, label, 0) for study in (root, in_processes))
        weights = f"arms/{label}/stages/1/policy/model.safetensors"
        assert file_hash(here / weights) == file_hash(there / weights)
        assert (here / "rollouts/pool.parquet").is_file()
        assert not (there / "rollouts").exists()
        names = [{f.relative_to(r).as_posix() for f in r.rglob("*")} for r in (here, there)]
        assert {n for n in names[0] if not n.startswith("rollouts")} == names[1]
        # Costs and curves count and measure the same, but for the clock.
        assert (here / "metrics.jsonl").read_text() == (there / "metrics.jsonl").read_text()


def test_a_study_whose_model_lies_beside_its_config_goes_on(tmp_path: Path) -> None:
    (tmp_path / "made").symlink_to(untrained(), target_is_directory=True)
    for seeds in ((0,), (0, 1)):
        config = fake_config(tmp_path, *FAST, "model.path=made")
        study = run_study(
            StudyPlan.of(config, ["random"], list(seeds)), tmp_path, executor=Inline()
        )
    assert (cell(study, "random", 1) / "metrics.jsonl").is_file()


def test_seeds_of_other_settings_are_refused_before_anything_runs(root: Path, folder: Path) -> None:
    longer = fake_config(folder, "curriculum.steps_per_stage=4", "evaluation.every=2", VARIANT)
    before = (root / "study.yaml").read_bytes()
    with pytest.raises(InputError, match=r"other settings .*steps_per_stage: 2 -> 4"):
        run_study(StudyPlan.of(longer, ["random"], [5]), executor=Inline())
    assert not list(root.glob("*/*/seed-5"))
    assert not (root / "shared/seed-5").exists()
    assert (root / "study.yaml").read_bytes() == before


def test_a_cell_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    config = fake_config(
        tmp_path, *FAST, "prompts.pool=[{pocket: [add, max], split: pool, size: 44}]"
    )
    study = StudyPlan.of(config, ["oracle", "full"], [0])
    with pytest.raises(InputError, match=r"1 of 2 runs are not finished \(oracle, seed 0.*no pool"):
        run_study(study, executor=Inline())
    assert is_finished(study.runs()[1].config)
    assert write_study_report(study.root).strategies.keys() == {"full"}


def test_a_crash_in_a_cell_stops_no_other_and_leaves_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(tmp_path)
    study = StudyPlan.of(fake_config(tmp_path, *FAST), ["crashing:Crashing", "full"], [0])
    with pytest.raises(InputError, match=r"1 of 2 runs.*RuntimeError: no luck \(line 5 of"):
        run_study(study, executor=Inline())
    assert is_finished(study.runs()[1].config)
    log = study.runs()[0].config.directory / "log.txt"
    assert "RuntimeError: no luck" in log.read_text()


def test_a_setting_that_one_cell_cannot_use_is_reported_before_rollouts(tmp_path: Path) -> None:
    odd = "compare.variants={odd: {selection.strategy: full, training.engine.grpo.nosuch: 1}}"
    config = fake_config(tmp_path, *FAST, odd, "training.engine.name=trl")
    study = StudyPlan.of(config, ["odd", "full"], [0])
    with pytest.raises(InputError, match=r"2 of 2 runs are not finished.*nosuch"):
        run_study(study, executor=Inline())
    assert not (study.root / "shared" / "seed-0" / "rollouts").exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")
def test_workers_end_with_the_study_that_was_killed(tmp_path: Path) -> None:
    """An orphan would go on in the very cells that the next start resumes."""
    config = write_config(tmp_path)
    command = [
        sys.executable,
        "-m",
        "cropi",
        "compare",
        str(config),
        "--seeds",
        "0",
        *FAST,
        *FAKE,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not list(tmp_path.rglob("shared/seed-0/log.txt")):
            assert process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert children
    while any(alive(int(pid)) for pid in children):
        time.sleep(0.05)


def test_a_cell_with_rollouts_of_its_own_does_not_take_the_shared_ones_times(
    folder: Path, root: Path, tmp_path: Path
) -> None:
    shared = plan(folder, "full").shared(0)
    own_evaluation = shared.model_copy(
        update={
            "out": str(tmp_path),
            "rollouts": shared.rollouts.model_copy(update={"responses": 6}),
        }
    )
    assert shared.directory.is_dir()
    link_shared_files(shared, own_evaluation)
    rows = read_jsonl(RunDirectory(own_evaluation.directory).timings)
    assert [r for r in rows if r["phase"] == "rollouts"] == []


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        (
            ["ful"],
            [0],
            r"unknown strategy 'ful'; allowed: bandit.*did you mean 'full'",
        ),
        (["full", "full"], [0], "name at least one, and each once"),
        (["full"], [], "compare seeds"),
        (["r.5", "r-5"], [0], "two share a folder; rename a variant"),
        (["seeded"], [0], "seeded: seed is decided by the study"),
        (["no.module:Nope"], [0], "no module named 'no'"),
    ],
)
def test_what_cannot_be_compared_is_reported_before_any_work(
    tmp_path: Path, labels: list[str], seeds: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StudyPlan.of(fake_config(tmp_path, *FAST, VARIANT), labels, seeds)


def test_a_variant_with_an_impossible_setting_is_reported_with_its_name(tmp_path: Path) -> None:
    config: RunConfig = fake_config(
        tmp_path, "compare.variants={odd: {selection.strategy: cropi, selection.ratio: 7}}"
    )
    with pytest.raises(InputError, match=r"of odd.*selection\.ratio = 7"):
        StudyPlan.of(config, ["odd"], [0])


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    assert parse_seeds("") is None
    for wrong in ("a", "1-", "-1", "1..3"):
        with pytest.raises(InputError, match=r"is not a seed; give e.g. 0-4"):
            parse_seeds(wrong)


def test_workers_leave_no_trace_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is started here afterwards would compute with other threads, so other last bits."""
    for before in (None, "5"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if before:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        with Processes(2, 3) as executor:
            executor.submit(WorkUnit("threads", os.getenv, ("OMP_NUM_THREADS",)))
            assert [unit.result() for unit in executor.completed()] == ["3"]
        assert os.environ.get("OMP_NUM_THREADS") == before


def test_cells_keep_the_threads_that_the_study_began_with(
    in_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_processes.parent.parent
    begun = yaml.safe_load((in_processes / "study.yaml").read_text())["compare"]["threads"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run_threads(plan(folder, "random"), jobs=1) == begun
    fresh = plan(tmp_path, "random")
    assert run_threads(fresh, jobs=1) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = usable_cores()
    assert [run_threads(fresh, jobs=n) for n in (1, 2 * cores)] == [cores, 1]
    asked = StudyPlan.of(fake_config(tmp_path, *FAST, "compare.threads=7"), ["random"], [0])
    assert run_threads(asked, jobs=1) == 7
    other = f"compare.threads={begun + 1}"
    with pytest.raises(InputError, match=f"began with {begun} threads"):
        run_threads(StudyPlan.of(fake_config(folder, *FAST, other), ["random"], [0]), jobs=1)


@pytest.mark.parametrize(
    ("setting", "threads"), [("0", 1), ("4,2", 4), (" 2 ", 2), ("²", 1), ("", 1), ("many", 1)]
)
def test_what_a_user_asks_the_libraries_for_is_read_as_they_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert run_threads(plan(tmp_path, "random"), jobs=1000) == threads


@pytest.mark.parametrize(
    "text", ["", "[1]", "compare: null", "compare: 3", "compare: {threads: two}", "name: [", "\0"]
)
def test_a_study_file_that_says_nothing_of_threads_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fresh = plan(tmp_path, "random")
    fresh.root.mkdir(parents=True)
    (fresh.root / "study.yaml").write_text(text)
    assert run_threads(fresh, jobs=1) == 3
