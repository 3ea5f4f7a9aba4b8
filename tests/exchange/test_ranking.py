"""What a ranking says about each prompt, and what becomes of doubtful rewards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cropi.cli.rank import print_ranking
from cropi.errors import InputError
from cropi.exchange.imports.pairing import pair_with_log
from cropi.exchange.imports.rollout_folder import read_rollout_log
from cropi.exchange.ranking.prompt_history import pass_rule
from cropi.exchange.ranking.ranked_table import ranked_table
from cropi.exchange.ranking.ranking import MeasuredPool, Ranking, logged_pool, rank
from cropi.schema import InfluenceEstimate
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.store.tables import read_selection
from support.command_line import Command, in_process
from support.trainer_logs import (
    TASKS,
    WRITERS,
    Task,
    lm_eval_row,
    samples,
    write_data,
    write_lines,
    write_trl,
    write_verl,
)


def ranking_of(folder: Path, ratio: float = 0.4, pass_at: float | None = None) -> Ranking:
    log = read_rollout_log(folder)
    pool = logged_pool(log, pair_with_log(log), pass_at)
    settings = SelectionConfig(strategy=StrategyChoice.of("learnability"), ratio=ratio)
    return rank(pool, settings, seed=0)


@pytest.fixture
def cropi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return in_process(monkeypatch, capsys)


def test_every_prompt_has_a_row_with_its_numbers_and_a_reason(tmp_path: Path) -> None:
    WRITERS["plain"](tmp_path, samples())
    rows = {row["prompt"]: row for row in ranked_table(ranking_of(tmp_path)).to_pylist()}
    assert rows.keys() == {task.question for task in TASKS}
    best = rows["What is 3 * 3?"]
    assert (best["rank"], best["selected"], best["reason"]) == (1, True, "selected")
    assert (best["learnability"], best["step"]) == (0.25, 2)
    lower = rows["What is 2 + 3?"]
    assert (lower["raw_pass_rate"], lower["current_pass_rate"]) == (0.5, 0.75)
    assert rows["What is 4 + 4?"]["reason"] == "all right"
    assert rows["What is 4 + 4?"]["rank"] is None
    assert rows["Name a prime above 7."]["reason"] == "all wrong"
    assert sum(row["control"] for row in rows.values()) == 2


def test_ranks_are_the_order_in_which_more_would_be_selected(tmp_path: Path) -> None:
    rates = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0, 0]]
    tasks = [Task(f"Question {n}?", "1", {1: rate}) for n, rate in enumerate(rates)]
    WRITERS["plain"](tmp_path, samples(tasks))
    whole = ranking_of(tmp_path, ratio=1.0).selection.prompt_ids
    for ratio in (0.2, 0.4, 0.6):
        ranking = ranking_of(tmp_path, ratio)
        ids = ranked_table(ranking)["prompt_id"].to_pylist()
        assert ranking.selection.prompt_ids == ids[: len(ranking.selection.prompt_ids)]
        assert ids[:4] == whole


def test_where_influence_prefers_no_prompt_the_first_lines_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS["plain"](tmp_path, samples())
    log = read_rollout_log(tmp_path)
    pool = logged_pool(log, pair_with_log(log), None)
    ids = [prompt.prompt_id for prompt in pool.prompts]
    few = InfluenceEstimate.from_means(ids, {"target": np.linspace(0, 1, len(ids))})
    measured = MeasuredPool(few, np.ones((1, len(ids), 2)), ["a note of the log"])
    ranking = rank(pool, SelectionConfig(ratio=0.4), seed=0, measured=measured)
    print_ranking(ranking, [], tmp_path / "report.html")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("No selection: all 5 prompts of the pool are taken, where 2 were asked")
    warnings = [line for line in rest if line.startswith("  ! ")]
    assert "cannot be predicted from 5 scores" in warnings[0]
    assert "--no-gradients" in warnings[1]
    assert "a note of the log" in warnings[-1]
    ranking = rank(pool, SelectionConfig(ratio=1.0), seed=0, measured=measured)
    print_ranking(ranking, [], tmp_path / "report.html")
    assert capsys.readouterr().out.startswith("5 of 5 prompts to train on next")


def test_strategies_that_remember_see_every_visit(tmp_path: Path) -> None:
    tasks = [Task("Seen often", "1", {s: [1, 0, 0, 1] for s in range(1, 6)}),
             Task("Seen once", "1", {5: [1, 0, 0, 1]})]  # fmt: skip
    WRITERS["plain"](tmp_path, samples(tasks))
    log = read_rollout_log(tmp_path)
    pool = logged_pool(log, pair_with_log(log), None)
    settings = SelectionConfig(strategy=StrategyChoice.of("information"), ratio=0.5)
    ranking = rank(pool, settings, seed=0)
    assert [p.content for p in pool.prompts if p.prompt_id in ranking.selection.prompt_ids] == [
        "Seen once"
    ]


def test_an_answer_that_all_responses_contradict_is_suspected(tmp_path: Path) -> None:
    tasks = [
        *TASKS,
        Task("All say the gold", "3.50", {1: [0, 0, 0]}, wrong="The answer is 3.5"),
        Task("They differ", "1", {1: [0, 0, 0]}, wrong="The answer is {place}"),
        Task("Two are too few", "1", {1: [0, 0]}, wrong="The answer is 2"),
        Task("One is right", "1", {1: [0, 0, 1]}, wrong="The answer is 2"),
    ]
    WRITERS["plain"](tmp_path, samples(tasks))
    rows = {row["prompt"]: row for row in ranked_table(ranking_of(tmp_path)).to_pylist()}
    suspected = {
        name: (r["suspected"], r["all_state"]) for name, r in rows.items() if r["suspected"]
    }
    assert suspected == {"What is 10 - 4?": ("answer", "6"), "All say the gold": ("reward", "3.5")}


def test_rewards_are_shares_or_of_two_values_or_the_user_says_what_passes() -> None:
    assert pass_rule([0, 0.5, 1], None, "x").apply([0, 0.5]).tolist() == [0, 0.5]
    assert pass_rule([-1, 1, 1], None, "x").apply([-1, 1]).tolist() == [0, 1]
    assert pass_rule([-1, 0.2, 2], 0.2, "x").apply([-1, 0.2, 2]).tolist() == [0, 1, 1]
    for rewards in ([-1, 0, 1], [0, 1, 2.5], [3.0]):
        with pytest.raises(InputError, match="--pass-at"):
            pass_rule(rewards, None, "x")
    assert pass_rule([-1, -0.0], None, "x").note == "rewards are -1 and 0: the higher passes"
    for pass_at in (None, 0.5):
        with pytest.raises(InputError, match="no response with a reward"):
            pass_rule([float("nan")], pass_at, "x")


@pytest.mark.parametrize(
    ("pass_at", "sentence"),
    [(5, "the largest reward is 2,"), (-1, "the smallest reward is -1,"), (0.2, ""), (2, "")],
)
def test_a_reward_to_pass_at_that_tells_no_responses_apart_is_told(
    pass_at: float, sentence: str
) -> None:
    note = pass_rule([-1, 0.2, 2, float("nan")], pass_at, "x").note
    assert sentence in note
    assert bool(sentence) == bool(note)


def test_rewards_shifted_and_scaled_give_the_same_ranking(tmp_path: Path) -> None:
    WRITERS["plain"](tmp_path / "a", samples())
    scaled = [Task(t.question, t.gold, {s: [2 * r - 1 for r in rs] for s, rs in t.visits.items()},
                   t.wrong) for t in TASKS]  # fmt: skip
    WRITERS["plain"](tmp_path / "b", samples(scaled))
    first, second = (ranked_table(ranking_of(tmp_path / name)).to_pylist() for name in "ab")
    for one, other in zip(first, second, strict=True):
        keep = ("prompt", "rank", "reason", "raw_pass_rate", "learnability", "dead_groups")
        assert [one[k] for k in keep] == [other[k] for k in keep]


def test_responses_without_a_reward_are_in_no_rate(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": "a", "reward": r} for r in (1, 0, None, float("nan"))]
    write_lines(tmp_path / "r.jsonl", rows)
    ranking = ranking_of(tmp_path)
    (row,) = ranked_table(ranking).to_pylist()
    assert (row["raw_pass_rate"], row["responses"]) == (0.5, 4)
    assert any("2 responses without a reward" in note for note in ranking.notes)


def test_a_log_without_rewards_is_refused_with_what_was_noted(tmp_path: Path) -> None:
    write_lines(tmp_path / "1.jsonl", [lm_eval_row(samples()[0], resps=[["5", "6"]])])
    with pytest.raises(InputError, match=r"several responses together.*no response with a reward"):
        ranking_of(tmp_path)


def test_a_log_without_rewards_is_judged_by_the_rows_of_the_data(
    tmp_path: Path, cropi: Command
) -> None:
    """As if the log had the verifier's rewards; a log that has rewards is never judged again."""
    rows = [{"question": f"{n}+1=", "answer": f"{n + 1}"} for n in range(4)]
    texts = [["1", "2"], ["2", "2"], ["9", "3"], ["4", "4"]]
    logged = [{"prompt": r["question"], "outputs": t} for r, t in zip(rows, texts, strict=True)]
    rewards = [[t == r["answer"] for t in ts] for r, ts in zip(rows, texts, strict=True)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    bare = write_lines(tmp_path / "bare.jsonl", logged)
    judged = write_lines(
        tmp_path / "judged.jsonl",
        [{**row, "rewards": r} for row, r in zip(logged, rewards, strict=True)],
    )

    def command(log: Path, out: str, *more: object) -> tuple[object, ...]:
        return ("rank", "--rollouts", log, "--out", tmp_path / out, "--ratio", 0.5, *more)

    cropi(*command(bare, "bare", "--prompts", data, "--verifier", "exact")).done()
    cropi(*command(judged, "judged", "--prompts", data)).done()
    tables = [pq.read_table(tmp_path / out / "ranked.parquet") for out in ("bare", "judged")]
    assert tables[0].equals(tables[1])
    assert sum(tables[0]["selected"].to_pylist()) == 2
    cropi(*command(bare, "x", "--verifier", "exact")).refused("answers", "--prompts")
    cropi(*command(judged, "x", "--verifier", "exact")).refused("--verifier has no effect")
    cropi(*command(judged, "x", "--responses", 4)).refused("--responses has no effect")


def test_several_reward_columns_of_trl_need_a_name(tmp_path: Path, cropi: Command) -> None:
    write_trl(tmp_path / "log", samples())
    for path in (tmp_path / "log").rglob("*.parquet"):
        table = pq.read_table(path)
        formats = np.arange(table.num_rows) % 2
        pq.write_table(table.add_column(4, "format_reward", [formats]), path)
    arguments = ("rank", "--rollouts", tmp_path / "log", "--out", tmp_path / "out")
    cropi(*arguments).refused("accuracy_reward, format_reward", "go from 0 to 2", "--reward")
    outcome = cropi(*arguments, "--reward", "accuracy_reward")
    outcome.done()
    cropi(*arguments, "--reward", "absent").refused("no column absent", "correct --reward")


def test_the_command_leaves_one_folder(tmp_path: Path, cropi: Command) -> None:
    write_verl(tmp_path / "log", samples())
    data = write_data(tmp_path / "train.jsonl")
    out = tmp_path / "ranked"
    outcome = cropi("rank", "--rollouts", tmp_path / "log", "--prompts", data, "--ratio", 0.4,
                    "--out", out)  # fmt: skip
    outcome.done()
    table = pq.read_table(out / "ranked.parquet")
    selected = table.filter(table["selected"])["prompt_id"].to_pylist()
    assert read_selection(out / "selection.parquet").prompt_ids == selected
    control = table.filter(table["control"])["prompt_id"].to_pylist()
    assert sorted(read_selection(out / "control.parquet").prompt_ids) == sorted(control)
    assert len(control) == len(selected) == 2
    again = cropi("rank", "--rollouts", tmp_path / "log", "--prompts", data, "--ratio", 0.4,
                  "--out", out)  # fmt: skip
    again.done()
    assert pq.read_table(out / "ranked.parquet").equals(table)


def test_a_pool_without_gradients_has_a_table_and_nothing_to_select(
    tmp_path: Path, cropi: Command
) -> None:
    out = tmp_path / "ranked"
    write_trl(tmp_path / "log", samples())
    cropi("rank", "--rollouts", tmp_path / "log", "--out", out).done()
    assert (out / "trl" / "export.json").exists()
    dead = [Task(t.question, t.gold, {1: [0, 0, 0]}, t.wrong) for t in TASKS]
    write_trl(tmp_path / "dead", samples(dead))
    outcome = cropi("rank", "--rollouts", tmp_path / "dead", "--out", out)
    outcome.done()
    assert "nothing to select" in outcome.out
    assert not (out / "selection.parquet").exists()
    assert not (out / "trl").exists()
    assert set(pq.read_table(out / "ranked.parquet")["reason"].to_pylist()) == {"all wrong"}


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, cropi: Command) -> None:
    write_verl(tmp_path / "log", samples())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "prompts.parquet").write_text("precious")
    arguments = ("--rollouts", tmp_path / "log", "--out", tmp_path / "mine")
    cropi("rank", *arguments).refused("no ranking wrote")
    assert (tmp_path / "mine" / "prompts.parquet").read_text() == "precious"


def test_what_an_earlier_ranking_left_goes_only_when_there_is_a_new_one(
    tmp_path: Path, cropi: Command
) -> None:
    out = tmp_path / "ranked"
    write_trl(tmp_path / "log", samples())
    arguments = ("rank", "--rollouts", tmp_path / "log", "--out", out)
    cropi(*arguments).done()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    cropi(*arguments, "--to", "nobody").refused("nobody", "allowed")
    cropi(*arguments, "--pass-at", "nan").refused("--pass-at")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    cropi(*arguments, "--to", "jsonl").done()
    assert (out / "jsonl").exists()
    assert not (out / "trl").exists()


def test_the_output_never_covers_the_rollouts(tmp_path: Path, cropi: Command) -> None:
    write_verl(tmp_path / "log", samples())
    for out in (tmp_path / "log", tmp_path):
        cropi("rank", "--rollouts", tmp_path / "log", "--out", out).refused("--out")
    assert (tmp_path / "log" / "1.jsonl").exists()


def test_ranking_without_a_policy_needs_no_torch(tmp_path: Path) -> None:
    write_verl(tmp_path / "log", samples())
    call = ["cropi", "rank", "--rollouts", str(tmp_path / "log"), "--out", str(tmp_path / "out")]
    program = f"""
import sys
sys.modules['torch'] = sys.modules['transformers'] = None
sys.argv = {call}
from cropi.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
