"""The steps alone, on real files: rollouts, influence, selection, training, and once more."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

import cropi
from cropi.cli import main
from cropi.config import (
    RolloutsConfig,
    SelectionConfig,
    StrategyChoice,
    TrainerChoice,
    TrainingConfig,
)
from cropi.diagnostics import diagnose_fidelity
from cropi.errors import InputError
from cropi.pocket import rows
from cropi.policy.hidden_states import prompt_hidden_states
from cropi.rollouts import read_rollouts
from cropi.schema import ROLLOUT_COLUMNS, InfluenceEstimate, Selection
from cropi.selection import select
from cropi.selection.strategy import Scoring, SelectionContext
from cropi.store.tables import read_scores, read_selection

VERIFIER = """
def reward(completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer)]
"""


class Worst:
    """A user's strategy: the prompts that help least."""

    scoring: Scoring = "stage"

    def select(self, context: SelectionContext) -> Selection:
        scored = context.scored
        (cosines,) = scored.mean.values()
        order = np.argsort(cosines)[: context.count]
        ids = [scored.prompt_ids[i] for i in order]
        return Selection(ids, cosines[order].astype(np.float64))


def command(*arguments: object) -> None:
    """Call the command line in this process; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setattr(sys, "argv", ["cropi", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code


def write_rows(path: Path, split: str, skills: list[str], size: int) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows(split, skills, size, 0)))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, a verifier, and the rollouts of pool and validation set."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "judge.py").write_text(VERIFIER)
    for name, split, skills, size in (
        ("pool", "pool", ["sort", "shift"], 24),
        ("val", "validation", ["sort"], 10),
        ("test", "test", ["sort"], 8),
    ):
        write_rows(folder / f"{name}.jsonl", split, skills, size)
    for name in ("pool", "val"):
        command(
            "rollout", "--model", "pocket", "--prompts", folder / f"{name}.jsonl",
            "--verifier", f"{folder / 'judge.py'}:reward", "--responses", 6,
            "--max-new-tokens", 8, "--seed", 3, "--device", "cpu",
            "--out", folder / f"{name}.parquet",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def scored(work: Path) -> Path:
    out = work / "scores.parquet"
    command("score", "--model", "pocket", "--rollouts", work / "pool.parquet",
            "--target", f"sort set={work / 'val.parquet'}", "--out", out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def trained(work: Path, scored: Path) -> Path:
    """The policy after a first stage of two steps."""
    command("select", "--scores", scored, "--ratio", 0.2, "--out", work / "selection.parquet")
    command(*stage_arguments(work, "pocket", work / "one"))
    return work / "one"


def stage_arguments(work: Path, policy: object, out: Path) -> list[object]:
    return [
        "train", "--model", policy, "--prompts", work / "pool.jsonl",
        "--selection", work / "selection.parquet", "--out", out, "--steps", 2,
        "--verifier", f"{work / 'judge.py'}:reward", "--max-new-tokens", 8, "--device", "cpu",
        "--horizon", 4, "prompts_per_step=2", "responses=4", "learning_rate=1e-4",
    ]  # fmt: skip


def test_rollouts_follow_the_contract(work: Path) -> None:
    table = pq.read_table(work / "pool.parquet")
    assert tuple(table.column_names) == ROLLOUT_COLUMNS
    assert table.num_rows == 48 * 6
    prompts = cropi.load_prompts(work / "pool.jsonl")
    assert [g.prompt_id for g in read_rollouts(work / "pool.parquet")] == [
        p.prompt_id for p in prompts
    ]


def test_one_score_row_per_prompt_of_the_pool(work: Path, scored: Path) -> None:
    table = pq.read_table(scored)
    groups = read_rollouts(work / "pool.parquet")
    assert table["prompt_id"].to_pylist() == [g.prompt_id for g in groups]
    assert table["status"].to_pylist() == [g.score_status for g in groups]
    assert table.column_names == [
        *("prompt_id", "norm", "sort set", "sort set_standard_error"),
        *("tokens", "group_size", "status", "current_reward", "effective_share"),
    ]
    assert table.schema.metadata[b"cropi.pool_size"] == b"48"
    assert [value is not None for value in table["sort set"].to_pylist()] == [
        g.informative for g in groups
    ]
    assert np.nanmax(np.abs(table["sort set"].to_numpy())) <= 1


def test_sparse_scores_approximate_exact_ones(work: Path, scored: Path) -> None:
    out = work / "sparse.parquet"
    command("score", "--model", "pocket", "--rollouts", work / "pool.parquet",
            "--target", f"sort set={work / 'val.parquet'}", "--out", out, "--sketch", "sparse",
            "--seed", 1, "sketch.ratio=1.0")  # fmt: skip
    exact, sparse = read_scores(scored).scored(), read_scores(out).scored()
    assert sparse.prompt_ids == exact.prompt_ids
    error = np.abs(sparse.mean["sort set"] - exact.mean["sort set"])
    assert error.max() < 6 / np.sqrt(8192)
    np.testing.assert_allclose(sparse.norms, exact.norms, rtol=1e-4)


def test_a_selection_is_the_best_share_of_the_whole_pool(scored: Path, trained: Path) -> None:
    selection = read_selection(trained.parent / "selection.parquet")
    scores = read_scores(scored).scored()
    best = np.argsort(-scores.mean["sort set"], kind="stable")[: int(0.2 * 48)]
    assert selection.prompt_ids == [scores.prompt_ids[i] for i in best]
    assert selection.ranks["sort set"].tolist() == list(range(1, 10))


def test_a_second_stage_goes_on_with_optimizer_and_schedule(work: Path, trained: Path) -> None:
    second = work / "two"
    command(*stage_arguments(work, trained, second), "--carry-optimizer")
    state = json.loads((second / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    rates = [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]
    assert rates == pytest.approx([1e-4, 7.5e-5, 5e-5, 2.5e-5])
    assert AutoModelForCausalLM.from_pretrained(second) is not None


def test_evaluation_writes_what_it_prints(work: Path, trained: Path) -> None:
    out = work / "accuracy.json"
    command("evaluate", "--model", trained, "--set", f"sort={work / 'test.jsonl'}",
            "--verifier", "exact", "--responses", 2, "--temperature", 1.0, "--k", 1, "--k", 2,
            "--max-new-tokens", 8, "--out", out)  # fmt: skip
    (row,) = json.loads(out.read_text())
    assert (row["set"], row["prompts"], list(row["pass_at"])) == ("sort", 8, ["1", "2"])
    assert 0 <= row["pass_at"]["1"] <= row["pass_at"]["2"] <= 1


def test_an_adapter_is_trained_where_lora_is_asked_for(work: Path, trained: Path) -> None:
    out = work / "adapter"
    command(*stage_arguments(work, trained, out), "lora.r=2")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, str(trained))
    command("score", "--model", out, "--rollouts", work / "pool.parquet",
            "--target", f"v={work / 'val.parquet'}", "--out", work / "adapted.parquet")  # fmt: skip


def test_a_strategy_is_found_by_its_dotted_path(scored: Path) -> None:
    scores = read_scores(scored).scored()
    selection = cropi.select(scores, SelectionConfig(strategy=f"{__name__}:Worst"))
    cosines = scores.mean["sort set"]
    assert selection.prompt_ids[0] == scores.prompt_ids[int(np.argmin(cosines))]


def test_functions_and_commands_agree(work: Path, scored: Path) -> None:
    influence = cropi.score("pocket", work / "pool.parquet", {"v": work / "val.parquet"})
    expected = read_scores(scored).scored().mean["sort set"]
    np.testing.assert_array_equal(influence.estimate.scored().mean["v"], expected)
    assert cropi.select(influence).prompt_ids == cropi.select(read_scores(scored)).prompt_ids


def test_the_command_reads_a_policy_for_strategies_that_look_at_it(
    work: Path, scored: Path, tmp_path: Path
) -> None:
    pool, out = work / "pool.parquet", tmp_path / "selection.parquet"
    command("select", "--scores", scored, "--rollouts", pool, "--model", "pocket", "--out", out)
    drawn = read_selection(out)
    settings = SelectionConfig(strategy=StrategyChoice.of("cropi"))
    states = prompt_hidden_states(cropi.load_policy("pocket").model, read_rollouts(pool))
    expected = cropi.select(read_scores(scored), settings, rollouts=pool, hidden_states=states)
    assert drawn.prompt_ids == expected.prompt_ids
    command("select", "--strategy", "dare", "--rollouts", pool, "--model", "pocket", "--out", out)
    assert read_selection(out).prompt_ids


def test_rollouts_that_are_there_are_not_sampled_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = cropi.load_prompts(work / "test.jsonl")
    settings = RolloutsConfig(responses=2, max_new_tokens=8)
    out = work / "again.parquet"
    first = cropi.rollout("pocket", prompts, out, verifier="exact", settings=settings)
    before = out.read_bytes()
    monkeypatch.setattr("cropi.rollouts.transformers_engine.TransformersEngine.generate", None)
    again = cropi.rollout("pocket", prompts, out, verifier="exact", settings=settings)
    assert [g.prompt_id for g in again] == [g.prompt_id for g in first]
    assert out.read_bytes() == before


def test_a_stage_does_not_replace_what_no_stage_wrote(work: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    prompts = cropi.load_prompts(work / "pool.jsonl")
    with pytest.raises(InputError, match="give a new path"):
        cropi.train("pocket", prompts, [prompts[0].prompt_id], tmp_path, steps=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_training_refuses_what_it_cannot_do(work: Path, trained: Path, tmp_path: Path) -> None:
    prompts = cropi.load_prompts(work / "pool.jsonl")
    ids, out = [prompts[0].prompt_id], tmp_path / "out"
    with pytest.raises(InputError, match=r"not among the \d+ given prompts"):
        cropi.train("pocket", prompts, ["gone"], out, steps=1)
    with pytest.raises(InputError, match="is empty"):
        cropi.train("pocket", prompts, [], out, steps=1)
    with pytest.raises(InputError, match="no optimizer state"):
        cropi.train("pocket", prompts, ids, out, steps=1, carry_optimizer=True)
    with pytest.raises(InputError, match="horizon 2 comes before step 3"):
        cropi.train(trained, prompts, ids, out, steps=1, carry_optimizer=True, horizon=2)
    with pytest.raises(InputError, match=r"training\.engine\.grpo\.nosuch"):
        cropi.train(
            "pocket",
            prompts,
            ids,
            out,
            steps=1,
            settings=TrainingConfig(engine=TrainerChoice.of(grpo={"nosuch": 1})),
        )
    assert not out.exists()


def test_a_strategy_that_finds_nothing_is_an_error(work: Path) -> None:
    solved = [g for g in read_rollouts(work / "pool.parquet") if not g.informative]
    with pytest.raises(InputError, match="selected no prompt"):
        cropi.select(
            None, SelectionConfig(strategy=StrategyChoice.of("learnability")), rollouts=solved
        )


def test_scores_are_needed_where_a_strategy_looks_at_them() -> None:
    with pytest.raises(InputError, match="needs scores"):
        cropi.select(None)
    with pytest.raises(InputError, match="rollouts"):
        cropi.select(None, SelectionConfig(strategy=StrategyChoice.of("random")))
    with pytest.raises(InputError, match="at least one by its name"):
        cropi.score("pocket", [], {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: cropi.select(None, s), "SelectionConfig(strategy='random')"),
        (lambda s: cropi.score("pocket", [], {"t": []}, s), "InfluenceConfig(sketch='random')"),
        (lambda s: cropi.extract_features("pocket", "r", "out", s), "InfluenceConfig(sketch="),
        (lambda s: cropi.rollout("pocket", [], "out", s), "RolloutsConfig(engine='random')"),
        (lambda s: cropi.evaluate("pocket", {}, s), "EvaluationConfig(engine='random')"),
        (lambda s: cropi.train("pocket", [], [], "out", s, steps=1), "TrainingConfig(engine="),
        (lambda s: cropi.train("pocket", [], [], "o", steps=1, rollouts=s), "RolloutsConfig("),
        (lambda s: diagnose_fidelity([], {"t": []}, "pocket", settings=s), "FidelitySettings(...)"),
    ],
)
def test_a_name_where_settings_are_wanted_is_refused(
    call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InputError, match="='random' is no") as refusal:
        call("random")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cropi.load_prompts(["a.jsonl"]), "path is of the type list"),  # type: ignore[arg-type]
        (lambda: cropi.load_prompts("a", tokenizer="pocket"), "tokenizer is 'pocket'"),
        (lambda: cropi.load_prompts("a", prompt_column="q"), "allowed: answer, answer_regex"),
        (lambda: cropi.load_policy({"a": 1}), "path is of the type dict"),  # type: ignore[arg-type]
        (lambda: cropi.read_rollouts(["a"]), "path is of the type list"),  # type: ignore[arg-type]
        (lambda: cropi.rollout("pocket", "a.jsonl", "o"), r"prompts is 'a.jsonl'.*load_prompts"),
        (lambda: cropi.rollout("pocket", [{"q": 1}], "o"), r"prompts\[0\] is of the type dict"),  # type: ignore[list-item]
        (lambda: cropi.rollout(("model", "tokenizer"), [], "o"), "policy is of the type tuple"),  # type: ignore[arg-type]
        (lambda: cropi.judge([], "a.jsonl"), "prompts is 'a.jsonl'"),
        (lambda: cropi.judge([], [], verifier=command), "as text"),  # type: ignore[arg-type]
        (lambda: cropi.score("pocket", ["a"], {"t": "b"}), r"rollouts\[0\] is 'a'"),  # type: ignore[list-item]
        (lambda: cropi.score("pocket", [], "val.parquet"), "targets is 'val.parquet'; give names"),  # type: ignore[arg-type]
        (lambda: cropi.score(None, [], {"t": []}), "policy is None"),  # type: ignore[arg-type]
        (lambda: cropi.select("scores.parquet"), r"scores is 'scores.parquet'.*read_scores"),  # type: ignore[arg-type]
        (lambda: cropi.evaluate("pocket", []), "sets is of the type list; give names"),  # type: ignore[arg-type]
        (lambda: cropi.evaluate("pocket", {"t": "a"}), "set t is 'a'"),
        (lambda: cropi.train("pocket", [], "s.parquet", "o", steps=1), r"selection is 's.parquet'"),
        (lambda: cropi.train("pocket", [], ["a"], "o", steps=0), "steps=0: give a whole number"),
        (lambda: cropi.train("pocket", [], ["a"], "o", steps="9"), r"steps='9': .* from 1 on"),  # type: ignore[arg-type]
        (lambda: cropi.train("pocket", [], ["a"], "o", steps=1, horizon=2.5), "horizon=2.5: give"),  # type: ignore[arg-type]
        (lambda: cropi.select(None, visits=True), "visits=True: give a whole number"),
        (lambda: cropi.run("my.yaml"), r"config is 'my.yaml'.*load_config"),  # type: ignore[arg-type]
        (lambda: cropi.load_config("pocket", "seed=1"), "overrides is 'seed=1'; give a list"),
        (lambda: cropi.write_scores("o", "scores"), "give influence.estimate"),  # type: ignore[arg-type]
        (lambda: cropi.write_selection("o", ["a"]), "give what cropi.select"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_kind_is_refused_with_what_to_give(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_the_package_offers_every_step_lazily() -> None:
    for name in cropi.__all__:
        assert getattr(cropi, name) is not None
    assert cropi.select is select
    with pytest.raises(AttributeError, match="nosuch"):
        cropi.nosuch  # noqa: B018


def test_an_estimate_selects_like_its_influence_and_both_are_files(tmp_path: Path) -> None:
    estimate = InfluenceEstimate.from_means(["a", "b"], {"v": np.array([0.1, 0.9])}, {"unknown": 8})
    cropi.write_scores(f"{tmp_path}/scores.parquet", estimate)
    read = cropi.read_scores(f"{tmp_path}/scores.parquet")
    selection = cropi.select(read, SelectionConfig(ratio=0.1))
    cropi.write_selection(f"{tmp_path}/selection.parquet", selection)
    read_back = cropi.read_selection(f"{tmp_path}/selection.parquet")
    assert selection.prompt_ids == read_back.prompt_ids == ["b"]
