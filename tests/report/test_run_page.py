"""The page: one file that loads nothing, trusts no text, and survives whatever is missing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.report import run_headline, run_table, write_run_report
from cropi.report.data.run_data import read_run
from cropi.report.kit.markup import axis_labels, chart_label, json_text, tag, text
from cropi.report.pages.run_training import training_curve
from cropi.rollouts.statistics import summarise_rollout_file
from support.pages import Elements, assert_loads_nothing, charts_of
from support.synthetic_run import HOSTILE, write_run

PLOTLY_SHA256 = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
"""Of plotly-cartesian.min.js in plotly.js-cartesian-dist-min 4.1.1, as npm has it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished", prompts=120, k=(1, 4))


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return write_run_report(finished).read_text(encoding="utf-8")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_page_loads_nothing_from_anywhere(page: str) -> None:
    assert_loads_nothing(page)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_page_forbids_the_browser_to_load_or_run_anything_else(page: str) -> None:
    policies = [m for m in Elements(page).of("meta") if m.get("http-equiv")]
    assert len(policies) == 1
    policy = policies[0]["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_a_page_whose_charts_cannot_be_drawn_says_why(page: str) -> None:
    assert "<noscript><p>Charts need JavaScript" in page


def test_plotly_is_embedded_once_and_most_of_the_file(page: str, finished: Path) -> None:
    assert len([s for s in Elements(page).of("script") if s.get("id") == "plotly"]) == 1
    assert (finished / "report.html").stat().st_size < 1_500_000


def test_the_embedded_plotly_is_the_published_bundle_with_its_notice(page: str) -> None:
    block = page.split('id="plotly">')[1].split("</script>")[0]
    script = gzip.decompress(base64.b64decode(block))
    assert hashlib.sha256(script).hexdigest() == PLOTLY_SHA256
    assert b"Licensed under the MIT license" in script[:300]


def test_the_page_says_how_the_pool_does_under_each_stages_policy(page: str) -> None:
    section = page[page.index("The pool under each stage") :]
    row = section[section.index("<td") : section.index("</tr>", section.index("<td"))]
    # Six responses at one half: 1 - 2 / 64
    assert [c in row for c in ("0.500", "96.9%", "75.0%")] == [True] * 3


def test_model_text_stays_text(page: str) -> None:
    scripts = Elements(page).of("script")
    assert len(scripts) == 3
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(&#x27;model&#x27;)" in page
    assert not [i for i in Elements(page).all if i[0] == "img"]


def test_hostile_names_of_sources_sets_and_arms_stay_text(run: Path) -> None:
    table = pq.read_table(run / "prompts" / "pool.parquet")
    names = [f"{s}{HOSTILE}" for s in table["source"].to_pylist()]
    at = table.schema.get_field_index("source")
    pq.write_table(table.set_column(at, "source", [names]), run / "prompts" / "pool.parquet")
    metrics = (run / "metrics.jsonl").read_text()
    hostile = json.dumps(f"addition{HOSTILE}")
    (run / "metrics.jsonl").write_text(metrics.replace('"set": "addition"', f'"set": {hostile}'))
    written = write_run_report(run).read_text(encoding="utf-8")
    assert len(Elements(written).of("script")) == 3
    assert "<img" not in written
    assert charts_of(written)


@pytest.mark.parametrize("value", ["</script>", "<!--", "\u2028", "&lt;", '"'])
def test_json_cannot_leave_its_element_and_keeps_its_values(value: str) -> None:
    written = json_text({"a": [value, math.nan, math.inf, 1 / 3]})
    assert "<" not in written
    assert "\u2028" not in written
    assert json.loads(written)["a"] == [value, None, None, 0.333333]


def test_text_is_escaped_and_markup_of_our_own_is_not() -> None:
    assert text("<b>&'\"") == "&lt;b&gt;&amp;&#x27;&quot;"
    assert tag("p", "<i>", tag("b", "x"), class_='"') == '<p class="&quot;">&lt;i&gt;<b>x</b></p>'
    assert chart_label("<a href='http://x'>y</a>") == "&lt;a href='http://x'&gt;y&lt;/a&gt;"
    assert text("\x00\u202e") == "\ufffd\ufffd"


def test_every_chart_has_its_place_and_every_variant_can_be_chosen(page: str) -> None:
    places = {d.get("id") for d in Elements(page).of("div") if d.get("class") == "chart"}
    charts = charts_of(page)
    assert places == set(charts)
    controls = {e.get("data-control") for _, e in Elements(page).all if e.get("data-control")}
    assert {c for spec in charts.values() for c in spec["controls"]} == controls


def test_page_and_command_line_show_the_same_numbers(page: str, finished: Path) -> None:
    assert str(text(run_headline(finished))) in page
    _, rows = run_table(finished)
    for cell in (cell for row in rows for cell in row):
        assert str(text(cell)) in page
    assert [row[0] for row in rows] == ["cropi", "full"]


def test_report_of_the_same_run_has_the_same_bytes(page: str, finished: Path) -> None:
    assert write_run_report(finished).read_text(encoding="utf-8") == page


PARTS = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "timings.jsonl",
    "prompts",
    "prompts/pool.parquet",
    "prompts/notes.json",
    "rollouts",
    "arms",
    "arms/full",
    "arms/cropi",
    "arms/cropi/stages/1/scores.parquet",
    "arms/cropi/stages/4/selection.parquet",
)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("part", PARTS)
def test_report_survives_the_absence_of(part: str, run: Path) -> None:
    remove(run / part)
    assert charts_of(write_run_report(run).read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("only", ["config.yaml", "manifest.json", "metrics.jsonl"])
def test_report_of_almost_nothing_says_what_is_missing(only: str, run: Path) -> None:
    for path in list(run.iterdir()):
        if path.name != only:
            remove(path)
    written = write_run_report(run).read_text(encoding="utf-8")
    assert "unfinished or partial run" in written
    assert "prompts/pool.parquet is not there" in written


def test_half_written_lines_are_left_out_and_named(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "arm": "cro')
    assert "1 unreadable line" in write_run_report(run).read_text(encoding="utf-8")
    assert run_table(run)[1][0][1] == "240"


def test_broken_tables_are_named_and_do_not_stop_the_report(run: Path) -> None:
    (run / "rollouts" / "pool.parquet").write_bytes(b"PAR1 no table")
    (run / "arms/cropi/stages/2/scores.parquet").write_bytes(b"")
    written = write_run_report(run).read_text(encoding="utf-8")
    assert "rollouts/pool.parquet cannot be read" in written
    assert "stages/2/scores.parquet cannot be read" in written


def test_rows_of_stages_not_yet_in_the_runs_file_are_read_once(run: Path) -> None:
    rows, timings = ((run / f"{name}.jsonl").read_text() for name in ("metrics", "timings"))
    (run / "arms/cropi/stages/1/metrics.jsonl").write_text(rows)
    before = read_run(run).rows.rows
    (run / "metrics.jsonl").unlink()
    after = read_run(run).rows.rows
    assert after == before
    assert len(before) == len(rows.splitlines()) + len(timings.splitlines())


def test_a_run_without_baseline_or_test_sets_says_so(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = (run / "config.yaml").read_text().replace("baselines: [full]", "baselines: []")
    (run / "config.yaml").write_text(config)
    shutil.rmtree(run / "arms" / "full")
    others = [r for r in rows if r["kind"] != "evaluation" and r["arm"] != "full"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in others))
    assert "no accuracy was measured" in run_headline(run)
    assert "No evaluation in this run" in write_run_report(run).read_text(encoding="utf-8")


def test_a_folder_that_no_setting_and_no_row_names_is_no_arm(run: Path) -> None:
    before = run_table(run)
    (run / "arms" / "notes").mkdir()
    shutil.copytree(run / "arms" / "cropi", run / "arms" / "cropi copy")
    assert run_table(run) == before


def test_a_part_of_a_run_and_a_folder_of_runs_are_no_run(run: Path) -> None:
    stage = run / "arms" / "cropi" / "stages" / "1"
    (stage / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=rf"give {run}$"):
        write_run_report(stage)
    with pytest.raises(InputError, match=rf"not a run directory.*holds {run.name}\)"):
        write_run_report(run.parent)


@pytest.mark.parametrize("part", ["shared", "shared/seed-0", "cells", "cells/random"])
def test_a_part_of_a_study_is_no_run(run: Path, tmp_path: Path, part: str) -> None:
    study = tmp_path / "my-study"
    (study / "cells" / "random").mkdir(parents=True)
    (study / "study.yaml").touch()
    shutil.copytree(run, study / "shared" / "seed-0")
    shutil.copytree(run, study / "cells" / "random" / "seed-0")
    with pytest.raises(InputError, match=rf"is a part of {study}; give {study}$"):
        write_run_report(study / part)
    write_run_report(study / "cells" / "random" / "seed-0")


@pytest.mark.parametrize("name", ["nothing_here", "empty"])
def test_a_directory_that_is_not_a_run_is_the_users_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        write_run_report(tmp_path / name)


def test_a_rollout_files_summary_counts_prompts_as_the_method_does(finished: Path) -> None:
    summary = summarise_rollout_file(finished / "rollouts" / "pool.parquet")
    rows = pq.read_table(finished / "rollouts" / "pool.parquet").to_pylist()
    rewards: dict[str, list[float]] = {}
    for row in rows:
        rewards.setdefault(row["prompt_id"], [])
        if row["reward_status"] == "ok":
            rewards[row["prompt_id"]].append(row["reward"])
    assert summary.responses == len(rows)
    assert summary.informative == sum(len(r) > 1 and max(r) > min(r) for r in rewards.values())
    assert set(summary.groups) == set(rewards)


def test_a_hundred_sources_stay_readable(tmp_path: Path) -> None:
    sources = tuple(f"source/{i}" for i in range(100))
    run = write_run(tmp_path / "many", prompts=300, stages=2, sources=sources)
    charts = charts_of(write_run_report(run).read_text(encoding="utf-8"))
    widest = max(
        len(figure["data"]) for spec in charts.values() for figure in spec["variants"].values()
    )
    assert widest <= 14


def test_labels_of_an_axis_are_never_equal() -> None:
    names = [f"a_common_and_very_long_beginning_{i}_a_common_and_very_long_end" for i in range(5)]
    assert len(set(axis_labels(names))) == 5


def test_a_schedule_is_drawn_as_it_is_and_noisy_quantities_as_their_mean() -> None:
    steps, rates = [1.0, 2.0, 3.0, 4.0], [0.0, 1e-5, 2e-5, 2e-5]
    _, drawn = training_curve([("a", "var(--arm0)", steps, rates)], [], "~e", 1)["data"]
    assert drawn["y"] == rates
    _, mean = training_curve([("a", "var(--arm0)", steps, rates)], [], "~g")["data"]
    assert mean["y"][0] > rates[0]
