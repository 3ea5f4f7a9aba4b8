"""Reading a study: costs as the contract says them, and whatever is missing is said, not fatal."""

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
from cropi.study.measuring import measure
from cropi.study.reading import RESULTS, Cell, read_cells, results_table
from support.synthetic_study import write_study

SLOW = [0.4, 0.5, 0.6, 0.7, 0.8]
FAST = [0.4, 0.6, 0.8, 0.8, 0.8]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    accuracies = {"cropi": {0: FAST, 1: FAST}, "full": {0: SLOW, 1: SLOW}}
    return write_study(tmp_path / "synthetic-study", accuracies)


def cell_of(root: Path, strategy: str, seed: int = 0) -> Cell:
    found = read_cells(root).cells
    return next(c for c in found if (c.strategy, c.seed) == (strategy, seed))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_whole_study_has_every_cell_and_nothing_missing(root: Path) -> None:
    found = read_cells(root)
    assert [(c.strategy, c.seed) for c in found.cells] == [
        ("cropi", 0),
        ("cropi", 1),
        ("full", 0),
        ("full", 1),
    ]
    assert all(c.finished for c in found.cells)
    assert found.missing == []
    assert found.baseline == "full"


def test_accuracy_is_the_mean_over_sets(root: Path) -> None:
    cell = cell_of(root, "cropi")
    assert cell.steps.tolist() == [0, 25, 50, 75, 100]
    assert cell.targeted == pytest.approx(FAST)
    assert cell.untargeted == pytest.approx([0.5, 0.5, 0.52, 0.52, 0.54])


def test_training_costs_sampled_prefilled_and_trained_tokens(root: Path) -> None:
    spent = cell_of(root, "full").spent
    assert spent.training["flops"] == pytest.approx([9e6 * i for i in range(5)])
    assert spent.training["seconds"] == pytest.approx([0, 10, 20, 30, 40])
    assert spent.total("generated_tokens").tolist() == [0, 1000, 2000, 3000, 4000]


def test_a_strategy_pays_for_the_rollouts_that_name_it_and_for_its_scoring(root: Path) -> None:
    """Nothing at step 0; rollouts and the first scoring before step 25, scoring before step 75."""
    selection = cell_of(root, "cropi").spent.selection
    assert selection["flops"] == pytest.approx([0, 13.5e6, 13.5e6, 18e6, 18e6])
    assert selection["seconds"] == pytest.approx([0, 25, 25, 30, 30])
    assert selection["generated_tokens"].tolist() == [0, 1000, 1000, 1000, 1000]
    assert selection["trained_tokens"].tolist() == [0, 400, 400, 800, 800]


def test_a_strategy_that_looks_at_no_rollouts_pays_for_none(root: Path) -> None:
    selection = cell_of(root, "full").spent.selection
    assert all(not amounts.any() for amounts in selection.values())


def test_rollouts_made_anew_are_paid_in_their_stage(root: Path) -> None:
    path = root / "cells" / "cropi" / "seed-0"
    row = {"kind": "cost", "arm": "cropi", "stage": 1, "phase": "rollouts", "flops": 7e6}
    row |= {"tokens_generated": 300, "tokens_forward": 100}
    with (path / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    selection = cell_of(root, "cropi").spent.selection
    assert selection["flops"] == pytest.approx([0, 13.5e6, 13.5e6, 25e6, 25e6])
    assert selection["generated_tokens"].tolist() == [0, 1000, 1000, 1300, 1300]


def test_evaluation_and_warm_up_count_for_none(root: Path) -> None:
    assert cell_of(root, "cropi").spent.total("flops").max() == pytest.approx(54e6)
    assert cell_of(root, "cropi").spent.total("seconds").max() == pytest.approx(70)


def test_costs_by_phase_add_up_to_the_total(root: Path) -> None:
    cell = cell_of(root, "cropi")
    for measure_ in ("flops", "seconds", "generated_tokens", "trained_tokens"):
        by_phase = sum(phase[measure_] for phase in cell.phases.values())
        assert by_phase == pytest.approx(cell.spent.total(measure_)[-1])


def test_what_was_selected_is_counted_by_source_with_pass_rates(root: Path) -> None:
    chosen = cell_of(root, "cropi").selected
    assert chosen.pool == {"count": 10, "max": 10, "shift": 10, "sort": 10}
    assert chosen.pool_pass_rate == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert [c.sources for c in chosen.choices] == [
        {"shift": 2, "sort": 10},
        {"shift": 4, "sort": 10},
    ]
    assert chosen.choices[0].pass_rate == pytest.approx(2 * 0.5 / 12)


def test_results_have_a_row_for_every_evaluation_of_a_set(root: Path) -> None:
    table = results_table(read_cells(root).cells)
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


def test_an_unfinished_cell_is_in_the_results_and_in_no_mean(tmp_path: Path) -> None:
    accuracies = {"cropi": {0: FAST, 1: [0.4, 0.9]}, "full": {0: SLOW, 1: SLOW}}
    root = write_study(tmp_path / "study", accuracies)
    study = measure(root)
    assert study.files.missing == [
        "cropi seed 1: evaluated up to step 25 of 100; left out of every mean"
    ]
    assert study.standings["cropi"].curves.seeds == (0,)
    assert study.comparisons["cropi"].seeds == (0,)
    assert results_table(study.files.cells).num_rows == 3 * 15 + 6
    # One shared seed has no interval, though the baseline has two.
    found = study.speed("cropi")
    assert found is not None
    assert found.low is None


def test_cells_that_never_began_are_named(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"cropi": {0: FAST}, "full": {0: SLOW}}, seeds=[0, 1, 2])
    shutil.rmtree(root / "cells" / "cropi")
    study = measure(root)
    assert study.files.missing == ["cropi: seeds 0, 1, 2 not begun", "full: seeds 1, 2 not begun"]
    assert list(study.standings) == ["full"]
    assert study.comparisons == {}


def test_a_study_without_its_baseline_says_why_there_are_no_accelerations(root: Path) -> None:
    shutil.rmtree(root / "cells" / "full")
    study = measure(root)
    assert study.comparisons == {}
    assert study.notes == (
        "the baseline full has no finished seed yet, so there are no accelerations",
    )


def test_a_comparison_takes_the_seeds_that_both_have_finished(tmp_path: Path) -> None:
    quick = [0.4, 0.8, 0.8, 0.8, 0.8]
    accuracies = {"cropi": {0: FAST, 1: FAST, 2: quick}, "full": {0: SLOW, 1: SLOW}}
    study = measure(write_study(tmp_path / "study", accuracies))
    assert study.standings["cropi"].curves.seeds == (0, 1, 2)
    assert study.comparisons["cropi"].seeds == (0, 1)
    found = study.speed("cropi")
    assert found is not None
    assert found.ratio == pytest.approx(2)
    assert "cropi is compared over 2 seeds, those of the baseline" in study.notes


def test_a_baseline_that_gained_too_little_is_noted(tmp_path: Path) -> None:
    still = [0.4, 0.4, 0.4, 0.41, 0.41]
    study = measure(write_study(tmp_path / "study", {"cropi": {0: FAST}, "full": {0: still}}))
    assert study.comparisons["cropi"].speeds == {}
    assert study.levels == {}
    assert "gained 1.0 points" in study.notes[0]
    assert study.comparisons["cropi"].final.value == pytest.approx(0.39)


def test_seeds_share_the_evaluation_steps_that_all_have(root: Path) -> None:
    path = root / "cells" / "cropi" / "seed-1" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [r for r in rows if not (r["kind"] == "evaluation" and r["step"] == 50)]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    curves = measure(root).standings["cropi"].curves
    assert curves.steps.tolist() == [0, 25, 75, 100]
    assert curves.targeted.shape == (2, 4)
    assert curves.selection["flops"][0] == pytest.approx([0, 13.5e6, 18e6, 18e6])


def test_a_half_written_line_is_left_out_and_told(root: Path) -> None:
    with (root / "cells" / "cropi" / "seed-0" / "timings.jsonl").open("a") as handle:
        handle.write('{"phase": "sc')
    found = read_cells(root)
    assert found.missing == ["cells/cropi/seed-0/timings.jsonl: 1 unreadable line(s) left out"]
    assert all(c.finished for c in found.cells)


def test_a_stage_that_is_not_in_the_cells_own_file_yet_counts_once(root: Path) -> None:
    cell = root / "cells" / "cropi" / "seed-0"
    lines = (cell / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = [line for line in lines if json.loads(line)["stage"] == 1]
    first = [line for line in lines if line not in second]
    before = cell_of(root, "cropi").spent.total("flops")
    stages = cell / "arms" / "cropi" / "stages"
    (stages / "0" / "metrics.jsonl").write_text(
        "".join(line for line in first if json.loads(line)["arm"])
    )
    (stages / "1" / "metrics.jsonl").write_text("".join(second))
    (cell / "metrics.jsonl").write_text("".join(first))
    again = cell_of(root, "cropi")
    assert again.finished
    assert again.spent.total("flops") == pytest.approx(before)


def test_without_a_clock_or_a_models_size_those_axes_are_unknown(root: Path) -> None:
    cell = root / "cells" / "cropi" / "seed-0"
    (cell / "timings.jsonl").unlink()
    (cell / "manifest.json").unlink()
    study = measure(root)
    assert study.standings["cropi"].curves.training == {}
    assert study.speed("cropi") is not None
    assert study.speed("cropi", "flops") is None
    assert study.speed("cropi", "seconds") is None
    rows = results_table(study.files.cells).to_pylist()
    own = [r for r in rows if (r["strategy"], r["seed"]) == ("cropi", 0)]
    assert all(r["flops"] is None and r["seconds"] is None for r in own)
    assert math.isnan(study.standings["cropi"].costs["flops"])


def test_a_broken_selection_is_told_and_the_rest_is_there(root: Path) -> None:
    file = root / "cells" / "cropi" / "seed-0" / "arms" / "cropi" / "stages" / "1"
    (file / "selection.parquet").write_bytes(b"PAR1")
    found = read_cells(root)
    assert len(found.missing) == 1
    assert "stages/1/selection.parquet cannot be read" in found.missing[0]
    assert [c.stage for c in found.cells[0].selected.choices] == [0]


def test_a_cell_of_a_variant_pays_as_its_strategy_does(tmp_path: Path) -> None:
    accuracies = {"cropi-fresh": {0: FAST}, "full": {0: SLOW}}
    root = write_study(tmp_path / "study", accuracies)
    cell = cell_of(root, "cropi-fresh")
    assert cell.arm == "cropi"
    assert cell.spent.selection["flops"][-1] == pytest.approx(18e6)


def test_a_strategy_of_ones_own_is_found_under_its_folders_name(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"mine-it": {0: FAST}, "full": {0: SLOW}})
    config = yaml.safe_load((root / "study.yaml").read_text())
    config["compare"]["strategies"] = ["mine:it", "full"]
    (root / "study.yaml").write_text(yaml.safe_dump(config))
    found = read_cells(root)
    assert [c.strategy for c in found.cells] == ["mine:it", "full"]
    assert found.missing == []


def test_a_cell_beyond_the_plan_is_measured_too(root: Path) -> None:
    edit(root / "study.yaml", "- cropi\n", "")
    study = measure(root)
    assert list(study.standings) == ["full", "cropi"]
    assert study.speed("cropi") is not None


def test_rollouts_that_name_no_arms_are_told(root: Path) -> None:
    edit(root / "cells/cropi/seed-0/metrics.jsonl", ', "arms": ["cropi", "other"]', "")
    found = read_cells(root)
    assert found.missing == ["cropi seed 0: rollouts that name no arms count for none"]


def test_a_directory_that_is_no_study_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither study\.yaml nor cells/"):
        read_cells(tmp_path)


def test_an_empty_study_has_no_cells_and_says_so(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", {"cropi": {}, "full": {}}, seeds=[0])
    study = measure(root)
    assert study.files.cells == []
    assert study.files.missing == ["cropi: seed 0 not begun", "full: seed 0 not begun"]
    assert results_table([]).num_rows == 0


def test_results_survive_the_round_trip(root: Path, tmp_path: Path) -> None:
    pq.write_table(results_table(read_cells(root).cells), tmp_path / "r.parquet")
    accuracies = pq.read_table(tmp_path / "r.parquet")["accuracy"].to_numpy()
    assert np.isfinite(accuracies).all()
