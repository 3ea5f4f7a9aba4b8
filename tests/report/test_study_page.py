"""The study's page, its numbers and its table, from whole, partial and hostile studies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cropi.report import write_study_report
from cropi.report.data import study_summary as summary
from cropi.report.kit.markup import table
from cropi.report.kit.number_format import DASH
from cropi.report.pages.study_charts import accuracy, trace_styles
from cropi.report.pages.study_page import render
from cropi.study.comparison import measure_study
from cropi.study.measures import Acceleration
from cropi.study.output import numbers
from support.pages import Elements, assert_loads_nothing, charts_of, text_of
from support.synthetic_study import large, write_study

SLOW = [0.4, 0.5, 0.6, 0.7, 0.8]
FAST = [0.4, 0.6, 0.8, 0.8, 0.8]
FLAT = [0.4, 0.5, 0.5, 0.5, 0.5]
HOSTILE = "<img src=x onerror=alert(1)></script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = large(tmp_path_factory.mktemp("studies") / "large", seeds=3, evaluations=7)
    write_study_report(root)
    return root


def test_a_study_is_written_whole(written: Path) -> None:
    assert {p.name for p in written.iterdir()} == {
        "cells",
        "shared",
        "study.yaml",
        "study.json",
        "results.parquet",
        "report.html",
    }
    assert pq.read_table(written / "results.parquet").num_rows > 0


def test_the_page_loads_nothing_from_anywhere(written: Path) -> None:
    assert_loads_nothing((written / "report.html").read_text())


def test_every_table_scrolls_in_a_box_that_shows_where_there_is_more(written: Path) -> None:
    page = (written / "report.html").read_text()
    boxes = page.count('<div class="scroll"><table>')
    assert boxes == page.count("<table") > 3
    (box,) = re.findall(r"\n\.scroll \{(.*?)\}", page, re.S)
    assert "overflow-x: auto" in box
    assert box.count("var(--edge)") == 2


def test_a_long_text_takes_several_lines_and_a_name_one() -> None:
    cells = Elements(table(("prompt", "rate"), [("why? " * 50, "30%"), ("why?", "40%")])).of("td")
    assert [cell["class"] for cell in cells] == ["words long", "number", "words", "number"]


def test_every_strategy_is_drawn_on_every_axis(written: Path) -> None:
    study = measure_study(written)
    first = charts_of((written / "report.html").read_text())["chart0"]
    assert set(first["variants"]) == {"steps", "flops", "seconds"}
    for figure in first["variants"].values():
        drawn = [t["name"] for t in figure["data"] if t.get("name")]
        assert drawn == list(study.strategies)


def test_selection_runs_level_on_the_axis_of_compute(tmp_path: Path) -> None:
    study = measure_study(write_study(tmp_path / "s", {"cropi": {0: FAST}, "full": {0: SLOW}}))
    figure = charts_of(render(study))["chart0"]["variants"]["flops"]
    line = next(t for t in figure["data"] if t.get("name") == "cropi")
    assert line["x"][:3] == pytest.approx([0, 13.5e6, 22.5e6])
    assert line["y"][:3] == pytest.approx([0.4, 0.4, 0.6])


def test_json_holds_every_number_and_is_strict(written: Path) -> None:
    text = (written / "study.json").read_text()
    study = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    cropi = study["strategies"]["cropi"]
    assert len(cropi["compared"]["accelerations"]) == 9
    assert [s["seed"] for s in cropi["seeds"]] == [0, 1, 2]
    assert cropi["seeds"][0]["selected"][0]["sources"] == {"shift": 2, "sort": 10}
    assert cropi["seeds"][0]["split_half"]["0"] == {"sort": 0.6}
    assert study["strategies"]["full"]["compared"] is None
    assert study["rules"]["levels"] == [0.8, 0.9, 0.95]


def test_numbers_agree_with_the_hand_computed_study(tmp_path: Path) -> None:
    accuracies = {"cropi": {0: FAST, 1: FAST}, "full": {0: SLOW, 1: SLOW}}
    study = numbers(measure_study(write_study(tmp_path / "s", accuracies)), "")
    cropi = study["strategies"]["cropi"]
    by = {(a["axis"], a["share"]): a for a in cropi["compared"]["accelerations"]}
    assert by["steps", 0.8]["ratio"] == pytest.approx(2)
    assert by["flops", 0.8]["ratio"] == pytest.approx(25.2 / 26.1)
    assert by["seconds", 0.8]["ratio"] == pytest.approx(28 / 39)
    assert cropi["result"]["area"]["value"] == pytest.approx(0.7)
    assert cropi["result"]["untargeted_change"]["value"] == pytest.approx(0.04)
    assert cropi["compared"]["final_targeted"]["value"] == pytest.approx(0)
    even = cropi["compared"]["break_even"][0]
    assert even["measured"] == pytest.approx(2)
    assert even["break_even"] == pytest.approx(13.5 * 2 / 12.6)
    assert even["at_5"] == pytest.approx(1.4)
    assert cropi["seeds"][1]["steps_to_level"] == pytest.approx(83.125 / 2)


def test_the_page_shows_the_oracles_share_and_the_reliability_of_targets(tmp_path: Path) -> None:
    best = [2 * fast - slow for fast, slow in zip(FAST, SLOW, strict=True)]
    accuracies = {"full": {0: SLOW, 1: SLOW}, "cropi": {0: FAST, 1: FAST}, "oracle": {0: best}}
    study = measure_study(write_study(tmp_path / "s", accuracies))
    share = study.comparisons["cropi"].oracle_share
    assert share is not None
    assert (share.mean, share.low, share.count) == (pytest.approx(0.5), None, 1)
    text = text_of(render(study))
    assert "oracle share" in text
    assert "0.60" in text
    assert "0.50" in text


def test_the_table_has_a_value_for_every_column(written: Path) -> None:
    study = measure_study(written)
    lines = summary.table_rows(study)
    assert [line[0].removesuffix(" (baseline)") for line in lines] == study.files.strategies
    assert {len(line) for line in lines} == {len(summary.COLUMNS)}


def test_the_table_says_the_numbers(tmp_path: Path) -> None:
    accuracies = {"cropi": {0: FAST, 1: FAST}, "slow": {0: FLAT}, "full": {0: SLOW, 1: SLOW}}
    lines = summary.table_rows(measure_study(write_study(tmp_path / "s", accuracies)))
    assert lines[0][:8] == (
        *("cropi", "2", "80.0%", "+4.0", "70.0%", "42"),
        *("2.00x [2.00, 2.00]", "1.05x [1.05, 1.05]"),
    )
    assert lines[1][:7] == ("slow", "1 of 2", "50.0%", "+4.0", "48.8%", "never", "never")
    assert lines[2][:7] == ("full (baseline)", "2", "80.0%", "+4.0", "60.0%", "83", DASH)


def test_the_headline_names_the_fastest_method_with_its_interval(tmp_path: Path) -> None:
    """An oracle knows what nobody does: it is a bound, not a method."""
    at_once = [FAST[0], *[0.95] * (len(FAST) - 1)]
    accuracies = {
        "oracle": {0: at_once, 1: at_once},
        "cropi": {0: FAST, 1: FAST},
        "slow": {0: FLAT, 1: FLAT},
        "full": {0: SLOW, 1: SLOW},
    }
    headline = summary.headline(measure_study(write_study(tmp_path / "s", accuracies)))
    assert headline == (
        "cropi, the fastest of 2 strategies, reached 95% of full's gain (73.2%) in 42 steps "
        "instead of 83: 2.00x fewer (95% interval 2.00 to 2.00), mean of 2 seeds; with selection "
        "paid for, 1.05x less compute (95% interval 1.05 to 1.05)."
    )


def test_the_headline_says_so_when_selection_does_not_pay_or_nothing_is_faster(
    tmp_path: Path,
) -> None:
    slower = measure_study(write_study(tmp_path / "a", {"cropi": {0: SLOW}, "full": {0: FAST}}))
    headline = summary.headline(slower)
    # FAST's level is 0.78, which SLOW crosses at step 95, FAST at 47.5.
    assert "in 95 steps instead of 48: 2.00x more, one seed" in headline
    assert "more compute" in headline
    never = measure_study(write_study(tmp_path / "b", {"cropi": {0: FLAT}, "full": {0: SLOW}}))
    assert summary.headline(never) == "cropi never reached 95% of full's gain (73.2%), one seed."


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.5, 0.8, "1.25x more (95% interval 1.25 to 2.00)"), (0.0, 0.8, "1.25 to never")],
)
def test_a_ratio_below_one_is_inverted_with_its_interval(
    low: float, high: float, words: str
) -> None:
    slower = Acceleration(0.95, 0.7, "steps", 80, 100, 0.8, low, high)
    assert words in summary.compared(slower, "fewer")


def test_where_the_baseline_gained_nothing_the_headline_says_where_the_others_ended(
    tmp_path: Path,
) -> None:
    still, fast = [0.4, 0.4, 0.4, 0.41, 0.41], [0.4, 0.6, 0.8, 0.8, 0.8]
    accuracies = {"cropi": {0: fast}, "random": {0: still}, "full": {0: still}}
    study = measure_study(write_study(tmp_path / "study", accuracies))
    headline = summary.headline(study)
    assert headline.startswith("No acceleration can be measured: the baseline full gained 1.0")
    assert headline.endswith("cropi ended +39.0 points from full.")
    (advice,) = [note for note in summary.further_notes(study) if "train longer" in note]
    assert advice in text_of(render(study))
    assert study.notes[0] not in summary.further_notes(study)


def test_a_study_without_finished_runs_still_has_a_page(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"cropi": {0: [0.4]}, "full": {}}, seeds=[0, 1])
    study = write_study_report(root)
    text = text_of((root / "report.html").read_text())
    assert summary.headline(study) == "No run of this study is finished yet."
    assert "cropi seed 0: evaluated up to step 0 of 100" in text
    assert "full: seeds 0, 1 not begun" in text
    assert "unfinished" in text


def test_an_empty_study_still_has_a_page(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"cropi": {}, "full": {}}, seeds=[0])
    write_study_report(root)
    assert "No run has begun." in text_of((root / "report.html").read_text())


def test_a_study_without_its_baseline_has_curves_and_no_ratios(tmp_path: Path) -> None:
    study = measure_study(write_study(tmp_path / "s", {"cropi": {0: FAST, 1: FAST}}))
    page = render(study)
    assert "the baseline full has no finished seed yet" in text_of(page)
    assert charts_of(page)["chart0"]["variants"]["steps"]["data"]
    assert summary.fastest(study) is None


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    root = write_study(tmp_path / "s", {"cropi": {0: FAST}, "full": {0: SLOW}})
    (root / "study.yaml").write_text(
        (root / "study.yaml").read_text().replace("name: synthetic", f"name: '{HOSTILE}'")
    )
    for file in root.glob("cells/*/*/metrics.jsonl"):
        file.write_text(file.read_text().replace('"sort"', json.dumps(f"sort{HOSTILE}")))
    pool = root / "shared" / "seed-0" / "prompts" / "pool.parquet"
    table = pq.read_table(pool)
    names = [f"{s}{HOSTILE}" for s in table["source"].to_pylist()]
    pq.write_table(table.set_column(1, "source", [names]), pool)
    page = render(measure_study(root))
    assert HOSTILE not in page
    assert not [1 for name, _ in Elements(page).all if name == "img"]


def test_twelve_strategies_look_different_and_the_baseline_has_the_colour_of_the_text() -> None:
    names = [f"s{i}" for i in range(12)]
    styles = trace_styles(names, "s3")
    assert len({(v.colour, v.dash) for v in styles.values()}) == 12
    assert styles["s3"].colour == "var(--text)"
    assert [v.colour for v in styles.values()].count("var(--text)") == 1


def test_no_band_of_an_accuracy_leaves_0_to_1(tmp_path: Path) -> None:
    slow, other = [0.4, 0.5, 0.6, 0.7, 0.8], [0.4, 0.6, 0.8, 0.8, 0.8]
    study = measure_study(write_study(tmp_path, {"full": {0: slow, 1: other}}))
    curves = {"full": study.strategies["full"].curves}
    drawn = accuracy(curves, trace_styles(["full"], "full"), "steps")
    assert drawn is not None
    area = drawn["data"][0]["y"]
    assert min(area) == 0
    assert max(area) == 1
