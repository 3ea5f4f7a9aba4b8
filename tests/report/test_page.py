"""The page: one file that loads nothing, trusts no text, and survives whatever is missing."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.report import cells, headline_of, report, summary_table
from cropi.report.markup import json_text, places, plain, tag, text
from cropi.report.reading import read_run
from cropi.report.rollouts import rollout_facts
from support.synthetic_run import HOSTILE, write_run


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, as a browser would."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == name]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished", prompts=120, k=(1, 4))


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return report(finished).read_text(encoding="utf-8")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def charts_of(page: str) -> dict[str, dict[str, object]]:
    found = re.search(
        r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL
    )
    assert found is not None
    return dict(json.loads(found.group(1)))


def test_page_loads_nothing_from_anywhere(page: str) -> None:
    for name, attributes in Elements(page).found:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(key) or ""
            assert value == "" or value.startswith(("#", "data:")), (name, key, value)
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


def test_plotly_is_embedded_once_and_most_of_the_file(page: str, finished: Path) -> None:
    assert len([s for s in Elements(page).of("script") if s.get("id") == "plotly"]) == 1
    assert (finished / "report.html").stat().st_size < 3_000_000


def test_model_text_stays_text(page: str) -> None:
    scripts = Elements(page).of("script")
    assert len(scripts) == 3
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(&#x27;model&#x27;)" in page
    assert not [i for i in Elements(page).found if i[0] == "img"]


def test_hostile_names_of_sources_sets_and_arms_stay_text(run: Path) -> None:
    table = pq.read_table(run / "prompts" / "pool.parquet")
    names = [f"{s}{HOSTILE}" for s in table["source"].to_pylist()]
    at = table.schema.get_field_index("source")
    pq.write_table(table.set_column(at, "source", [names]), run / "prompts" / "pool.parquet")
    metrics = (run / "metrics.jsonl").read_text()
    hostile = json.dumps(f"addition{HOSTILE}")
    (run / "metrics.jsonl").write_text(metrics.replace('"set": "addition"', f'"set": {hostile}'))
    written = report(run).read_text(encoding="utf-8")
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
    assert plain("<a href='http://x'>y</a>") == "&lt;a href='http://x'&gt;y&lt;/a&gt;"
    assert text("\x00\u202e") == "\ufffd\ufffd"


def test_every_chart_has_its_place_and_every_variant_can_be_chosen(page: str) -> None:
    places = {d.get("id") for d in Elements(page).of("div") if d.get("class") == "chart"}
    charts = charts_of(page)
    assert places == set(charts)
    controls = {e.get("data-control") for _, e in Elements(page).found if e.get("data-control")}
    assert {c for spec in charts.values() for c in spec["controls"]} == controls  # type: ignore[union-attr]


def test_page_and_command_line_show_the_same_numbers(page: str, finished: Path) -> None:
    assert str(text(headline_of(finished))) in page
    for row in summary_table(finished):
        for cell in cells(row):
            assert str(text(cell)) in page
    assert [r.arm for r in summary_table(finished)] == ["cropi", "full"]


def test_report_of_the_same_run_has_the_same_bytes(page: str, finished: Path) -> None:
    assert report(finished).read_text(encoding="utf-8") == page


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
    assert charts_of(report(run).read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("kept", ["config.yaml", "manifest.json", "metrics.jsonl"])
def test_report_of_almost_nothing_says_what_is_missing(kept: str, run: Path) -> None:
    for path in list(run.iterdir()):
        if path.name != kept:
            remove(path)
    written = report(run).read_text(encoding="utf-8")
    assert "unfinished or partial run" in written
    assert "rollouts/pool.parquet is not there" in written


def test_half_written_lines_are_left_out_and_named(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "arm": "cro')
    assert "1 unreadable line" in report(run).read_text(encoding="utf-8")
    assert summary_table(run)[0].steps == 240


def test_broken_tables_are_named_and_do_not_stop_the_report(run: Path) -> None:
    (run / "rollouts" / "pool.parquet").write_bytes(b"PAR1 no table")
    (run / "arms/cropi/stages/2/scores.parquet").write_bytes(b"")
    written = report(run).read_text(encoding="utf-8")
    assert "rollouts/pool.parquet cannot be read" in written
    assert "stages/2/scores.parquet cannot be read" in written


def test_rows_of_stages_not_yet_in_the_runs_file_are_read_once(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_text()
    (run / "arms/cropi/stages/1/metrics.jsonl").write_text(rows)
    before = read_run(run).metrics
    (run / "metrics.jsonl").unlink()
    assert read_run(run).metrics == before
    assert len(before) == len(rows.splitlines())


def test_a_run_without_baseline_or_test_sets_says_so(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = (run / "config.yaml").read_text().replace("baselines: [full]", "baselines: []")
    (run / "config.yaml").write_text(config)
    shutil.rmtree(run / "arms" / "full")
    kept = [r for r in rows if r["kind"] != "evaluation" and r["arm"] != "full"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert "no accuracy was measured" in headline_of(run)
    assert "No evaluation in this run" in report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nothing_here", "empty"])
def test_a_directory_that_is_no_run_is_the_users_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        report(tmp_path / name)


def test_rollout_facts_count_prompts_as_the_method_does(finished: Path) -> None:
    facts = rollout_facts(finished / "rollouts" / "pool.parquet")
    rows = pq.read_table(finished / "rollouts" / "pool.parquet").to_pylist()
    rewards: dict[str, list[float]] = {}
    for row in rows:
        rewards.setdefault(row["prompt_id"], [])
        if row["reward_status"] == "ok":
            rewards[row["prompt_id"]].append(row["reward"])
    assert facts.responses == len(rows)
    assert facts.informative == sum(len(r) > 1 and max(r) > min(r) for r in rewards.values())
    assert set(facts.groups) == set(rewards)


def test_a_hundred_sources_stay_readable(tmp_path: Path) -> None:
    sources = tuple(f"source/{i}" for i in range(100))
    run = write_run(tmp_path / "many", prompts=300, stages=2, sources=sources)
    charts = charts_of(report(run).read_text(encoding="utf-8"))
    widest = max(
        len(figure["data"])
        for spec in charts.values()
        for figure in spec["variants"].values()  # type: ignore[attr-defined]
    )
    assert widest <= 14


def test_labels_of_an_axis_are_never_equal() -> None:
    names = [f"a_common_and_very_long_beginning_{i}_a_common_and_very_long_end" for i in range(5)]
    assert len(set(places(names))) == 5
