"""Steps to a level, what each arm pays, and how it is put into words."""

from __future__ import annotations

from typing import Any

import pytest

from cropi.report.data.run_curves import Curve, arm_curve, first_reached, stage_ends
from cropi.report.data.run_summary import (
    COLUMNS,
    ArmSummary,
    full_cost,
    headline,
    summarise,
    table_row,
)
from cropi.report.data.selection_counts import (
    count_sources,
    fold_sources,
    histogram,
    largest_sources,
    stage_novelty,
)
from cropi.store.metrics import from_json
from cropi.study.accuracy import RunRows, accuracy_points
from cropi.study.costs import SHARED, phase_costs

Row = dict[str, Any]
ARMS = ["cropi", "full"]


def typed(*rows: Row) -> RunRows:
    return RunRows([from_json(row) for row in rows])


def evaluation(arm: str, step: int, accuracy: float, name: str = "math", **more: Any) -> Row:
    row = {"kind": "evaluation", "arm": arm, "stage": 1, "step": step, "set": name, "prompts": 100}
    row |= {"targeted": True, "pass_at": {"1": accuracy}}
    return row | {"generated_tokens": 10 * step, "trained_tokens": 20 * step} | more


def curve(arm: str, *accuracies: float, every: int = 100) -> list[Row]:
    return [evaluation(arm, i * every, a) for i, a in enumerate(accuracies)]


def summaries(rows: list[Row]) -> list[ArmSummary]:
    return summarise(typed(*rows), ARMS, "cropi")


@pytest.mark.parametrize(
    ("y", "level", "place"),
    [
        ([0.2, 0.4, 0.6], 0.5, 150.0),
        ([0.2, 0.4, 0.6], 0.4, 100.0),
        ([0.2, 0.4, 0.6], 0.2, 0.0),
        ([0.2, 0.4, 0.6], 0.61, None),
        ([0.2, 0.6, 0.1], 0.4, 50.0),
        ([0.2, 0.2, 0.4], 0.3, 150.0),
        ([], 0.3, None),
    ],
)
def test_level_is_reached_at_the_first_crossing_of_the_straight_line(
    y: list[float], level: float, place: float | None
) -> None:
    x = [100.0 * i for i in range(len(y))]
    curve = Curve(step=x, x=x, y=y, error=[0.0] * len(y))
    assert first_reached(curve, level) == (None if place is None else pytest.approx(place))


def test_acceleration_is_the_baselines_steps_over_the_arms_interpolated_steps() -> None:
    rows = curve("cropi", 0.2, 0.6, 0.7) + curve("full", 0.2, 0.3, 0.4)
    summary = summaries(rows)[0]
    assert summary.steps_to_level == pytest.approx(50)
    assert summary.acceleration == pytest.approx(4.0)
    words = headline(summaries(rows), "full", 200)
    assert (
        "reached full's final targeted accuracy (40.0%) after 50 of 200 steps: 4.00x fewer" in words
    )


def test_a_level_never_reached_is_said_to_be_never_reached() -> None:
    rows = curve("cropi", 0.2, 0.3, 0.35) + curve("full", 0.2, 0.3, 0.4)
    summary = summaries(rows)
    assert summary[0].steps_to_level is None
    assert summary[0].acceleration is None
    assert table_row(summary[0])[COLUMNS.index("steps to level")] == "never"
    assert "did not reach" in headline(summary, "full")
    assert "5.0 points short" in headline(summary, "full")
    assert full_cost(summary, "full") == ""


def test_a_baseline_that_learnt_nothing_gives_no_acceleration() -> None:
    rows = curve("cropi", 0.4, 0.5, 0.6) + curve("full", 0.4, 0.45, 0.4)
    summary = summaries(rows)
    assert summary[0].acceleration is None
    assert "ended no higher than the start" in headline(summary, "full")


def test_a_slower_arm_is_said_to_need_more_steps() -> None:
    rows = curve("cropi", 0.2, 0.25, 0.3, 0.35, 0.4) + curve("full", 0.2, 0.3, 0.35)
    assert summaries(rows)[0].acceleration == pytest.approx(2 / 3)
    assert "1.50x more" in headline(summaries(rows), "full")


def test_a_baseline_that_stood_at_its_level_early_is_not_held_back_for_the_headline() -> None:
    rows = curve("cropi", 0.2, 0.6, 0.7) + curve("full", 0.2, 0.4, 0.4)
    words = headline(summaries(rows), "full")
    assert "full itself first touched that level at step 100" in words


def test_an_unfinished_baseline_is_named_as_such() -> None:
    rows = curve("cropi", 0.2, 0.6, 0.7) + curve("full", 0.2, 0.3)
    words = headline(summaries(rows), "full", 200)
    assert "full has done 100 of 200 steps" in words


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "cropi has not been evaluated yet"),
        (curve("cropi", 0.2, 0.3), "no baseline"),
        ([evaluation("cropi", 60, 0.5, targeted=False)], "no targeted set"),
        ([{"kind": "train", "arm": "cropi", "step": 7}], "trained for 7 steps"),
    ],
)
def test_headline_says_what_is_missing(rows: list[Row], words: str) -> None:
    assert words in headline(summarise(typed(*rows), ["cropi"], "cropi"), None)


def test_mean_over_sets_takes_only_steps_where_every_set_was_measured() -> None:
    rows = [evaluation("a", 0, 0.2), evaluation("a", 0, 0.4, "code"), evaluation("a", 30, 0.9)]
    (point,) = accuracy_points(typed(*rows), "a", ["math", "code"])
    assert point.accuracy == pytest.approx(0.3)
    assert point.error == pytest.approx((0.2 * 0.8 / 100 + 0.4 * 0.6 / 100) ** 0.5 / 2)


def test_rollouts_and_scoring_are_paid_by_the_arms_that_use_them_before_they_train() -> None:
    rows = curve("cropi", 0.2, 0.3) + curve("full", 0.2, 0.3)
    rows += [
        {
            "kind": "cost",
            "arm": "",
            "phase": "rollouts",
            "tokens_generated": 500,
            "arms": ["cropi"],
        },
        {"kind": "cost", "arm": "cropi", "stage": 1, "phase": "scoring", "tokens_forward": 700},
    ]
    paid = arm_curve(typed(*rows), "cropi", ["math"], "tokens")
    free = arm_curve(typed(*rows), "full", ["math"], "tokens")
    assert paid is not None
    assert free is not None
    assert paid.x == [0, 1200, 4200]
    assert paid.y == [0.2, 0.2, 0.3]
    assert free.x == [0, 3000]


def test_later_scoring_is_paid_where_its_stage_begins() -> None:
    rows = [evaluation("cropi", 0, 0.2), evaluation("cropi", 60, 0.3)]
    rows += [evaluation("cropi", 120, 0.4, stage=2)]
    timings = [
        {"phase": "clock", "arm": "cropi", "stage": m, "step": 60 * m, "seconds": 6.0 * m}
        for m in (1, 2)
    ]
    timings += [{"phase": "scoring", "arm": "cropi", "stage": m, "seconds": 5.0} for m in (1, 2)]
    seconds = arm_curve(typed(*rows, *timings), "cropi", ["math"], "seconds")
    assert seconds is not None
    assert seconds.x == [0, 5, 11, 16, 22]
    assert stage_ends(typed(*rows, *timings), "cropi", "seconds") == [11]
    assert stage_ends(typed(*rows, *timings), "cropi", "steps") == [60]


def test_seconds_need_a_clock() -> None:
    assert arm_curve(typed(*curve("full", 0.2, 0.3)), "full", ["math"], "seconds") is None


def test_every_cost_is_in_the_ledger_once() -> None:
    metrics = [{"kind": "cost", "arm": "", "phase": "rollouts", "tokens_generated": 5, "flops": 7}]
    timings: list[Row] = [
        {"phase": "rollouts", "arm": "", "seconds": 2.0},
        {"phase": "training", "arm": "full", "stage": 1, "seconds": 3.0},
        {"phase": "training", "arm": "full", "stage": 2, "seconds": 4.0},
        {"phase": "clock", "arm": "full", "stage": 2, "step": 9, "seconds": 7.0},
    ]
    ledger = phase_costs(typed(*metrics, *timings), ["full"])
    assert [(c.arm, c.phase, c.seconds, c.tokens) for c in ledger] == [
        (SHARED, "rollouts", 2.0, 5.0),
        ("full", "training", 7.0, 0.0),
    ]


def test_novelty_counts_every_selected_prompt_once() -> None:
    stages = stage_novelty([["a", "b"], ["b", "c"], ["a", "c", "d"]])
    assert [(n.again, n.earlier, n.fresh) for n in stages] == [(0, 0, 2), (1, 0, 1), (1, 1, 1)]


def test_many_sources_fold_without_losing_a_prompt() -> None:
    sources = {f"p{i}": f"s{i % 40}" for i in range(400)}
    counts = count_sources(sources, sources)
    shown = fold_sources(counts, largest_sources([counts]))
    assert len(shown) == 13
    assert sum(shown.values()) == 400


def test_histogram_is_a_distribution() -> None:
    shares = histogram([0.0, 0.5, 0.5, 1.0, None, 1.2], 9)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[4] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("end", "doubted"), [(0.54, True), (0.46, True), (0.5, False), (0.6, False), (0.4, False)]
)
def test_without_a_baseline_a_change_within_the_tests_error_is_called_that(
    end: float, doubted: bool
) -> None:
    rows = summarise(typed(*curve("cropi", 0.5, end)), ["cropi"], "cropi")
    assert ("less than the test's standard error" in headline(rows, None)) == doubted
