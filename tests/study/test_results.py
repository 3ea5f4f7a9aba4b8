"""Reading a study: costs as the contract defines them, and what is missing is noted, not fatal."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cropi.errors import InputError
from cropi.report.data.study_summary import further_notes
from cropi.study.comparison import measure_study
from cropi.study.output import RESULTS, results_table
from cropi.study.results import RunResult, read_study
from support.synthetic_study import write_sample, write_study

SLOW = [0.4, 0.5, 0.6, 0.7, 0.8]
FAST = [0.4, 0.6, 0.8, 0.8, 0.8]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    accuracies = {"cropi": {0: FAST, 1: FAST}, "full": {0: SLOW, 1: SLOW}}
    return write_study(tmp_path / "synthetic-study", accuracies)


def run_of(root: Path, strategy: str, seed: int = 0) -> RunResult:
    runs = read_study(root).runs
    return next(run for run in runs if (run.strategy, run.seed) == (strategy, seed))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_whole_study_has_every_run_and_nothing_missing(root: Path) -> None:
    study = read_study(root)
    assert [(c.strategy, c.seed) for c in study.runs] == [
        ("cropi", 0),
        ("cropi", 1),
        ("full", 0),
        ("full", 1),
    ]
    assert all(c.finished for c in study.runs)
    assert study.missing == []
    assert study.baseline == "full"


def test_accuracy_is_the_mean_over_sets(root: Path) -> None:
    run = run_of(root, "cropi")
    assert run.steps.tolist() == [0, 25, 50, 75, 100]
    assert run.targeted == pytest.approx(FAST)
    assert run.untargeted == pytest.approx([0.5, 0.5, 0.52, 0.52, 0.54])


def test_training_costs_sampled_prefilled_and_trained_tokens(root: Path) -> None:
    costs = run_of(root, "full").costs
    assert costs.training["flops"] == pytest.approx([9e6 * i for i in range(5)])
    assert costs.training["seconds"] == pytest.approx([0, 10, 20, 30, 40])
    assert costs.total("generated_tokens").tolist() == [0, 1000, 2000, 3000, 4000]


def test_a_strategy_pays_for_the_rollouts_that_name_it_and_for_its_scoring(root: Path) -> None:
    """Nothing at step 0; rollouts and the first scoring before step 25, scoring before step 75."""
    selection = run_of(root, "cropi").costs.selection
    assert selection["flops"] == pytest.approx([0, 13.5e6, 13.5e6, 18e6, 18e6])
    assert selection["seconds"] == pytest.approx([0, 25, 25, 30, 30])
    assert selection["generated_tokens"].tolist() == [0, 1000, 1000, 1000, 1000]
    assert selection["trained_tokens"].tolist() == [0, 400, 400, 800, 800]


def test_a_strategy_that_uses_no_rollouts_pays_for_none(root: Path) -> None:
    selection = run_of(root, "full").costs.selection
    assert all(not amounts.any() for amounts in selection.values())


def test_refreshed_rollouts_are_paid_in_their_stage(root: Path) -> None:
    path = root / "cells" / "cropi" / "seed-0"
    row = {"kind": "cost", "arm": "cropi", "stage": 1, "phase": "rollouts", "flops": 7e6}
    row |= {"tokens_generated": 300, "tokens_forward": 100}
    with (path / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    selection = run_of(root, "cropi").costs.selection
    assert selection["flops"] == pytest.approx([0, 13.5e6, 13.5e6, 25e6, 25e6])
    assert selection["generated_tokens"].tolist() == [0, 1000, 1000, 1300, 1300]


def test_evaluation_and_warm_up_are_charged_to_no_strategy(root: Path) -> None:
    assert run_of(root, "cropi").costs.total("flops").max() == pytest.approx(54e6)
    assert run_of(root, "cropi").costs.total("seconds").max() == pytest.approx(70)


def test_costs_by_phase_add_up_to_the_total(root: Path) -> None:
    run = run_of(root, "cropi")
    for measure_ in ("flops", "seconds", "generated_tokens", "trained_tokens"):
        by_phase = sum(phase[measure_] for phase in run.phases.values())
        assert by_phase == pytest.approx(run.costs.total(measure_)[-1])


def test_a_sample_of_the_strategys_own_is_counted_and_no_other(root: Path) -> None:
    assert run_of(root, "cropi").selected.sampled is None
    write_sample(root / "cells" / "cropi" / "seed-0", 15)
    run = run_of(root, "cropi")
    assert run.selected.sampled == 15
    assert run.selected.pool_pass_rate == pytest.approx((10 * 0 + 5 * 0.5) / 15)
    assert run_of(root, "full").selected.sampled is None


def test_what_was_selected_is_counted_by_source_with_pass_rates(root: Path) -> None:
    chosen = run_of(root, "cropi").selected
    assert chosen.pool == {"count": 10, "max": 10, "shift": 10, "sort": 10}
    assert chosen.pool_pass_rate == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert [c.sources for c in chosen.stages] == [
        {"shift": 2, "sort": 10},
        {"shift": 4, "sort": 10},
    ]
    assert chosen.stages[0].pass_rate == pytest.approx(2 * 0.5 / 12)


def test_the_reliability_of_targets_is_read_where_it_was_measured(root: Path) -> None:
    assert run_of(root, "cropi").split_half == {
        0: {"sort": pytest.approx(0.6)},
        1: {"sort": pytest.approx(0.5)},
    }
    assert run_of(root, "full").split_half == {}


def test_results_have_a_row_for_every_evaluation_of_a_set(root: Path) -> None:
    table = results_table(read_study(root).runs)
    assert table.schema.equals(RESULTS)
    assert table.num_rows == 4 * 5 * 3
    row = next(
        r
        for r in table.to_pylist()
        if (r["strategy"], r["seed"], r["step"], r["set"]) == ("cropi", 1, 75, "sort")
    )
    expected = {
        "strategy": "cropi",
        "seed": 1,
        "step": 75,
        "stage": 1,
        "set": "sort",
        "targeted": True,
        "accuracy": 0.82,
        "prompts": 500,
        "generated_tokens": 4000,
        "trained_tokens": 3800,
        "flops": 45e6,
        "seconds": 60.0,
    }
    assert row == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items()}


def test_an_unfinished_run_is_in_the_results_and_in_no_mean(tmp_path: Path) -> None:
    accuracies = {"cropi": {0: FAST, 1: [0.4, 0.9]}, "full": {0: SLOW, 1: SLOW}}
    root = write_study(tmp_path / "study", accuracies)
    study = measure_study(root)
    assert study.files.missing == [
        "cropi seed 1: evaluated up to step 25 of 100; left out of every mean"
    ]
    assert study.strategies["cropi"].curves.seeds == (0,)
    assert study.comparisons["cropi"].seeds == (0,)
    assert results_table(study.files.runs).num_rows == 3 * 15 + 6
    # One shared seed has no interval, though the baseline has two.
    acceleration = study.acceleration("cropi")
    assert acceleration is not None
    assert acceleration.low is None


def test_runs_that_never_began_are_named(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"cropi": {0: FAST}, "full": {0: SLOW}}, seeds=[0, 1, 2])
    shutil.rmtree(root / "cells" / "cropi")
    study = measure_study(root)
    assert study.files.missing == ["cropi: seeds 0, 1, 2 not begun", "full: seeds 1, 2 not begun"]
    assert list(study.strategies) == ["full"]
    assert study.comparisons == {}


def test_a_run_that_is_copied_or_moved_counts_for_no_other(root: Path) -> None:
    cells = root / "cells"
    shutil.copytree(cells / "cropi", cells / "cropi copy")
    shutil.copytree(cells / "full" / "seed-0", cells / "full" / "seed-9")
    for name in ("full", "cropi"):
        (cells / name / "seed-1").rename(root / name)
    (root / "full").rename(cells / "cropi" / "seed-1")
    (root / "cropi").rename(cells / "full" / "seed-1")
    study = measure_study(root)
    assert [(run.strategy, run.seed) for run in study.files.runs] == [("cropi", 0), ("full", 0)]
    assert list(study.strategies) == ["cropi", "full"]
    assert {note.partition(":")[0] for note in further_notes(study) if "left out" in note} == {
        *("cropi copy seed 0", "cropi copy seed 1", "full seed 9", "cropi seed 1", "full seed 1"),
    }


def test_a_study_may_be_moved(root: Path, tmp_path: Path) -> None:
    before = len(read_study(root).runs)
    assert len(read_study(root.rename(tmp_path / "elsewhere")).runs) == before


def test_a_study_without_its_baseline_says_why_there_are_no_accelerations(root: Path) -> None:
    shutil.rmtree(root / "cells" / "full")
    study = measure_study(root)
    assert study.comparisons == {}
    assert study.notes == (
        "the baseline full has no finished seed yet, so there are no accelerations",
    )


def test_a_comparison_takes_the_seeds_that_both_have_finished(tmp_path: Path) -> None:
    quick = [0.4, 0.8, 0.8, 0.8, 0.8]
    accuracies = {"cropi": {0: FAST, 1: FAST, 2: quick}, "full": {0: SLOW, 1: SLOW}}
    study = measure_study(write_study(tmp_path / "study", accuracies))
    assert study.strategies["cropi"].curves.seeds == (0, 1, 2)
    assert study.comparisons["cropi"].seeds == (0, 1)
    acceleration = study.acceleration("cropi")
    assert acceleration is not None
    assert acceleration.ratio == pytest.approx(2)
    assert "cropi is compared over 2 seeds, those of the baseline" in study.notes


def test_a_baseline_that_gained_too_little_is_noted(tmp_path: Path) -> None:
    still = [0.4, 0.4, 0.4, 0.41, 0.41]
    study = measure_study(write_study(tmp_path / "study", {"cropi": {0: FAST}, "full": {0: still}}))
    assert study.comparisons["cropi"].accelerations == {}
    assert study.levels == {}
    assert "gained 1.0 points" in study.notes[0]
    assert study.comparisons["cropi"].final.mean == pytest.approx(0.39)


def test_seeds_share_the_evaluation_steps_that_all_have(root: Path) -> None:
    path = root / "cells" / "cropi" / "seed-1" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    others = [r for r in rows if not (r["kind"] == "evaluation" and r["step"] == 50)]
    path.write_text("".join(json.dumps(r) + "\n" for r in others))
    curves = measure_study(root).strategies["cropi"].curves
    assert curves.steps.tolist() == [0, 25, 75, 100]
    assert curves.targeted.shape == (2, 4)
    assert curves.selection["flops"][0] == pytest.approx([0, 13.5e6, 18e6, 18e6])


def test_a_half_written_line_is_left_out_and_reported(root: Path) -> None:
    with (root / "cells" / "cropi" / "seed-0" / "timings.jsonl").open("a") as handle:
        handle.write('{"phase": "sc')
    study = read_study(root)
    assert study.missing == ["cells/cropi/seed-0/timings.jsonl: 1 unreadable line(s) left out"]
    assert all(c.finished for c in study.runs)


def test_a_stage_that_is_not_in_the_runs_own_file_yet_counts_once(root: Path) -> None:
    cell = root / "cells" / "cropi" / "seed-0"
    lines = (cell / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = [line for line in lines if json.loads(line)["stage"] == 1]
    first = [line for line in lines if line not in second]
    before = run_of(root, "cropi").costs.total("flops")
    stages = cell / "arms" / "cropi" / "stages"
    (stages / "0" / "metrics.jsonl").write_text(
        "".join(line for line in first if json.loads(line)["arm"])
    )
    (stages / "1" / "metrics.jsonl").write_text("".join(second))
    (cell / "metrics.jsonl").write_text("".join(first))
    again = run_of(root, "cropi")
    assert again.finished
    assert again.costs.total("flops") == pytest.approx(before)


def test_without_a_clock_or_a_models_size_those_axes_are_unmeasured(root: Path) -> None:
    cell = root / "cells" / "cropi" / "seed-0"
    (cell / "timings.jsonl").unlink()
    (cell / "manifest.json").unlink()
    study = measure_study(root)
    assert study.strategies["cropi"].curves.training == {}
    assert study.acceleration("cropi") is not None
    assert study.acceleration("cropi", "flops") is None
    assert study.acceleration("cropi", "seconds") is None
    rows = results_table(study.files.runs).to_pylist()
    unmeasured = [r for r in rows if (r["strategy"], r["seed"]) == ("cropi", 0)]
    assert all(r["flops"] is None and r["seconds"] is None for r in unmeasured)
    assert math.isnan(study.strategies["cropi"].costs["flops"])


def test_a_broken_selection_is_reported_and_the_rest_is_read(root: Path) -> None:
    file = root / "cells" / "cropi" / "seed-0" / "arms" / "cropi" / "stages" / "1"
    (file / "selection.parquet").write_bytes(b"PAR1")
    study = read_study(root)
    assert len(study.missing) == 1
    assert "stages/1/selection.parquet cannot be read" in study.missing[0]
    assert [c.stage for c in study.runs[0].selected.stages] == [0]


def test_a_run_of_a_variant_pays_as_its_strategy_does(tmp_path: Path) -> None:
    accuracies = {"cropi-fresh": {0: FAST}, "full": {0: SLOW}}
    root = write_study(tmp_path / "study", accuracies)
    run = run_of(root, "cropi-fresh")
    assert run.arm == "cropi"
    assert run.costs.selection["flops"][-1] == pytest.approx(18e6)


def test_a_users_own_strategy_is_read_from_its_folder(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"mine-it": {0: FAST}, "full": {0: SLOW}})
    config = yaml.safe_load((root / "study.yaml").read_text())
    config["compare"]["strategies"] = ["mine:it", "full"]
    (root / "study.yaml").write_text(yaml.safe_dump(config))
    study = read_study(root)
    assert [c.strategy for c in study.runs] == ["mine:it", "full"]
    assert study.missing == []


def test_a_run_beyond_the_plan_is_measured_too(root: Path) -> None:
    edit(root / "study.yaml", "- cropi\n", "")
    study = measure_study(root)
    assert list(study.strategies) == ["full", "cropi"]
    assert study.acceleration("cropi") is not None


def test_rollouts_that_name_no_arms_are_reported(root: Path) -> None:
    edit(root / "cells/cropi/seed-0/metrics.jsonl", ', "arms": ["cropi", "other"]', "")
    study = read_study(root)
    assert study.missing == ["cropi seed 0: rollouts that name no arms are charged to none"]


def test_a_directory_that_is_not_a_study_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither study\.yaml nor cells/"):
        read_study(tmp_path)


def test_an_empty_study_has_no_runs_and_says_so(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"cropi": {}, "full": {}}, seeds=[0])
    study = measure_study(root)
    assert study.files.runs == []
    assert study.files.missing == ["cropi: seed 0 not begun", "full: seed 0 not begun"]
    assert results_table([]).num_rows == 0


def test_results_survive_the_round_trip(root: Path, tmp_path: Path) -> None:
    pq.write_table(results_table(read_study(root).runs), tmp_path / "r.parquet")
    accuracies = pq.read_table(tmp_path / "r.parquet")["accuracy"].to_numpy()
    assert np.isfinite(accuracies).all()
