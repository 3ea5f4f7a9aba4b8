"""The command line: one clear sentence and exit code 2 for bad input, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cropi.cli import app
from cropi.config import load_config
from cropi.curriculum.run_context import check_settings
from cropi.pocket import model_dir, rows
from cropi.progress import ProgressReporter
from cropi.rollouts import write_rollouts
from cropi.schema import Response, RolloutGroup
from support.command_line import Command
from support.fakes import TRAINER
from support.tiny_runs import FAKE, write_config


def pocket_jsonl(path: Path, split: str = "pool", size: int = 6) -> Path:
    prompts = rows(split, ["sort"], size, 0)
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return path


def group(name: str, rewards: list[float], token: int = 2) -> RolloutGroup:
    """Rollouts of one prompt, made by hand."""
    ids = np.array([token, 1], dtype=np.int32)
    return RolloutGroup(
        name,
        np.array([30, 5, 6], dtype=np.int32),
        [
            Response(ids + np.array([k, 0], np.int32), np.full(2, -0.5, np.float32), "x", reward=r)
            for k, r in enumerate(rewards)
        ],
    )


def write_pool(path: Path) -> Path:
    write_rollouts(path, [group("a", [0, 1]), group("b", [1, 0, 0], 7), group("c", [1, 1], 9)])
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.parquet")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of the pool, made once."""
    folder = tmp_path_factory.mktemp("scored")
    pool, path = write_pool(folder / "pool.parquet"), folder / "scores.parquet"
    given = ["--rollouts", str(pool), "--target", f"v={pool}", "--out", str(path)]
    app(["score", "--model", "pocket", *given], standalone_mode=False)
    return path


@pytest.fixture
def scores(scored: Path, tmp_path: Path) -> Path:
    return shutil.copy(scored, tmp_path / "scores.parquet")


def test_help_and_config_check_load_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from cropi.cli import main\n"
        "for argv in (['--help'], ['run', '--help'], ['config', 'check', sys.argv[1]]):\n"
        "    sys.argv[1:] = argv\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    config = str(write_config(tmp_path))
    subprocess.run([sys.executable, "-c", script, config], check=True, capture_output=True)


def test_select_and_report_load_no_torch(scores: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from cropi.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    out = str(tmp_path / "selection.parquet")
    arguments = ["select", "--scores", str(scores), "--ratio", "0.5", "--out", out]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    assert pq.read_table(out).num_rows == 1


def test_score_columns_follow_the_contract(scores: Path) -> None:
    table = pq.read_table(scores)
    assert table.column_names == [
        *("prompt_id", "norm", "v", "v_standard_error"),
        *("tokens", "group_size", "status"),
        *("current_reward", "effective_share"),
    ]
    assert str(table.schema.field("v").type) == "float"
    assert table.schema.metadata[b"cropi.pool_size"] == b"3"
    assert table["prompt_id"].to_pylist() == ["a", "b", "c"]
    assert table["status"].to_pylist() == ["scored", "scored", "rewards all equal"]


def test_parts_of_responses_are_columns_of_their_own_and_move_no_score(
    cropi: Command, scores: Path, pool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detailed.parquet"
    arguments = ["--rollouts", pool, "--target", f"v={pool}", "--out", out]
    outcome = cropi("score", "--model", "pocket", *arguments, "--per-response")
    outcome.done()
    assert "median error" in outcome.out
    plain, detailed = pq.read_table(scores), pq.read_table(out)
    assert set(detailed.column_names) - set(plain.column_names) == {"v_responses"}
    for column in ("prompt_id", "norm", "v", "tokens", "group_size", "status"):
        assert detailed[column].equals(plain[column])
    *parts, none = detailed["v_responses"].to_pylist()
    assert none is None
    assert [sum(p) for p in parts] == pytest.approx(plain["v"].to_pylist()[:2], abs=1e-5)
    for table in (scores, out):
        selection = tmp_path / f"{table.stem}-selection.parquet"
        cropi("select", "--scores", table, "--ratio", "0.5", "--out", selection).done()
    first, second = sorted(tmp_path.glob("*-selection.parquet"))
    assert pq.read_table(first).equals(pq.read_table(second))


def test_stored_features_know_nothing_of_single_responses(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    features = tmp_path / "pool.features"
    cropi("features", pool, "--model", "pocket", "--out", features, "sketch.dim=64").done()
    arguments = ["--target", f"v={features}", "--out", tmp_path / "s.parquet", "--per-response"]
    cropi("score", "--features", features, *arguments).refused("--per-response has no effect")


@pytest.mark.parametrize("ratio", ["0", "-0.5", "1.5", "nan"])
def test_a_ratio_that_selects_nothing_is_refused(
    cropi: Command, scores: Path, tmp_path: Path, ratio: str
) -> None:
    out = tmp_path / "s.parquet"
    cropi("select", "--scores", scores, "--ratio", ratio, "--out", out).refused("ratio")
    assert not out.exists()
    config = write_config(tmp_path)
    cropi("run", config, f"selection.ratio={ratio}").refused("selection.ratio")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("strategy", ["nosuch", "os:path", ":x", "no_such_module:Mine"])
def test_an_unknown_strategy_is_refused(cropi: Command, scores: Path, strategy: str) -> None:
    cropi("select", "--scores", scores, "--strategy", strategy).refused(strategy)


def test_files_without_usable_prompts_are_refused(cropi: Command, tmp_path: Path) -> None:
    bad = {
        "empty.jsonl": ("", "is empty"),
        "blank.jsonl": ("\n\n", "no rows"),
        "unanswered.jsonl": ('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n', "row 2"),
        "torn.jsonl": ('{"prompt": "a", "ans', "not valid JSON"),
        "torn.parquet": ("PAR1", "not a readable Parquet"),
        "notes.txt": ("hello", ".txt"),
    }
    out = tmp_path / "r.parquet"
    for name, (text, words) in bad.items():
        path = tmp_path / name
        path.write_text(text)
        cropi("rollout", "--model", "pocket", "--prompts", path, "--out", out).refused(words, name)
        config = write_config(tmp_path)
        cropi("run", config, f"prompts.pool=[{{path: {path}}}]").refused(words, name)
    assert not out.exists()


def test_an_overlong_prompt_is_refused_or_dropped(cropi: Command, tmp_path: Path) -> None:
    pool = pocket_jsonl(tmp_path / "pool.jsonl")
    with pool.open("a") as handle:
        handle.write(json.dumps({"prompt": "s" + "1" * 70 + "=", "answer": "1"}) + "\n")
    out = tmp_path / "r.parquet"
    cropi(
        "rollout",
        "--model",
        "pocket",
        "--prompts",
        pool,
        "--verifier",
        "exact",
        "--out",
        out,
        "--max-new-tokens",
        8,
    ).refused("72 tokens", "context of 64")
    config = write_config(tmp_path)
    short = (
        "selection.strategy=random",
        "curriculum.stages=1",
        "curriculum.steps_per_stage=1",
        f"training.engine={TRAINER}",
        f"prompts.pool=[{{path: {pool}}}]",
    )
    cropi("run", config, *short).refused("over 56 tokens", "prompts.overlong=drop")
    outcome = cropi("run", config, *short, "prompts.overlong=drop")
    outcome.done()
    assert "1 prompt of the pool too long" in outcome.out


@pytest.mark.parametrize("policy", ["{tmp}", "{tmp}/nowhere", "./no/where", "{tmp}/file"])
def test_a_directory_without_a_model_is_refused(
    cropi: Command, pool: Path, tmp_path: Path, policy: str
) -> None:
    (tmp_path / "file").write_text("hello")
    path = policy.replace("{tmp}", str(tmp_path))
    out = tmp_path / "o.parquet"
    cropi(
        "score", "--model", path, "--rollouts", pool, "--target", f"v={pool}", "--out", out
    ).refused(path)
    assert not out.exists()


def test_nan_weights_are_refused(cropi: Command, pool: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_dir().iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name] = weights[name].copy()
    weights[name].flat[0] = np.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    cropi(
        "score",
        "--model",
        broken,
        "--rollouts",
        pool,
        "--target",
        f"v={pool}",
        "--out",
        tmp_path / "o.parquet",
    ).refused("NaN", name)
    cropi("run", write_config(tmp_path), f"model.path={broken}").refused("NaN", name)


def test_a_target_without_an_informative_prompt_is_refused(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat.parquet"
    write_rollouts(flat, [group("x", [1, 1]), group("y", [0, 0])])
    out = tmp_path / "o.parquet"
    cropi(
        "score", "--model", "pocket", "--rollouts", pool, "--target", f"v={flat}", "--out", out
    ).refused("validation set v", "no informative prompt")
    cropi(
        "score", "--model", "pocket", "--rollouts", flat, "--target", f"v={pool}", "--out", out
    ).refused("the pool", "no informative prompt")
    assert not out.exists()


def test_a_run_whose_target_has_no_gradient_stops_before_it_samples_the_pool(
    cropi: Command, tmp_path: Path
) -> None:
    hopeless = tmp_path / "v.jsonl"
    hopeless.write_text('{"prompt": "s321=", "answer": "never said"}\n')
    outcome = cropi(
        "run", write_config(tmp_path), *FAKE, f"prompts.validation.sort=[{{path: {hopeless}}}]"
    )
    outcome.refused("validation set sort", "no informative prompt")
    assert (tmp_path / "runs/tiny/rollouts/validation/sort.parquet").is_file()
    sampled = tmp_path / "runs/tiny/arms/cropi/stages/0/rollouts/pool"
    assert not sampled.exists()


def test_files_without_usable_rollouts_are_refused(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    table = pq.read_table(pool)
    files = {
        "none.parquet": "does not exist",
        "rows.parquet": "no rows",
        "torn.parquet": "Parquet",
        "zero.parquet": "empty",
        "columns.parquet": "logprobs",
    }
    pq.write_table(table.slice(0, 0), tmp_path / "rows.parquet")
    pq.write_table(table.drop_columns(["logprobs"]), tmp_path / "columns.parquet")
    (tmp_path / "torn.parquet").write_bytes(pool.read_bytes()[:-20])
    (tmp_path / "zero.parquet").touch()
    for name, words in files.items():
        path = tmp_path / name
        out = ("--out", tmp_path / "o.parquet")
        cropi(
            "score", "--model", "pocket", "--rollouts", path, "--target", f"v={pool}", *out
        ).refused(words, name)
        cropi(
            "score", "--model", "pocket", "--rollouts", pool, "--target", f"v={path}", *out
        ).refused(words, name)
        cropi("select", "--strategy", "random", "--rollouts", path, *out).refused(words, name)


def test_rollouts_of_another_vocabulary_are_refused(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.parquet"
    write_rollouts(foreign, [group("x", [0, 1], token=50_000)])
    cropi(
        "score",
        "--model",
        "pocket",
        "--rollouts",
        pool,
        "--target",
        f"v={foreign}",
        "--out",
        tmp_path / "o.parquet",
    ).refused("5000")


@pytest.mark.parametrize("place", ["/proc/x", "{file}/x", "{tmp}"])
def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    cropi: Command, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the output was tried")

    prompts = pocket_jsonl(tmp_path / "prompts.jsonl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("a thesis")
    out = place.replace("{file}", str(prompts)).replace("{tmp}", str(tmp_path / "full"))
    monkeypatch.setattr("cropi.policy.loading.load_policy", forbidden)
    monkeypatch.setattr("cropi.training.start_policy.load_policy", forbidden)
    common = ("--model", "pocket", "--verifier", "exact")
    cropi("rollout", *common, "--prompts", prompts, "--out", out).refused(out)
    cropi(
        "score", "--model", "pocket", "--rollouts", pool, "--target", f"v={pool}", "--out", out
    ).refused(out)
    cropi("select", "--strategy", "random", "--rollouts", pool, "--out", out).refused(out)
    cropi("evaluate", *common, "--set", f"s={prompts}", "--out", out).refused(out)
    chosen = tmp_path / "chosen.parquet"
    cropi("select", "--strategy", "random", "--rollouts", pool, "--out", chosen).done()
    ids = pq.read_table(chosen)["prompt_id"].to_pylist()
    prompts.write_text("".join(json.dumps({"prompt": "s1=", "answer": "1", "id": i}) for i in ids))
    cropi("train", *common, "--prompts", prompts, "--selection", chosen, "--out", out).refused(out)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "a thesis"


@pytest.mark.parametrize("out", ["/proc/x", "{file}"])
def test_a_run_directory_that_cannot_be_written_is_refused(
    cropi: Command, tmp_path: Path, out: str
) -> None:
    config = write_config(tmp_path)
    place = out.replace("{file}", str(config))
    cropi("run", config, f"out={place}").refused(place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "no settings"),
        ("", "no settings"),
        ("\xff\xfe", "text"),
        ("1: 2\nmodel: {path: pocket}\nprompts: {pool: [{path: x}]}", "unknown key 1; allowed: "),
        ("model: {path: pocket}\nprompts: {pool: []}", "prompts.pool"),
        ("model: pocket\nprompts: {pool: [{path: x}]}", "model"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(
    cropi: Command, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    for command in (("run",), ("config", "check"), ("config", "show")):
        cropi(*command, path).refused(words)


def test_a_config_that_is_not_there_is_refused(cropi: Command, tmp_path: Path) -> None:
    for command in (("run",), ("config", "check"), ("config", "show")):
        cropi(*command, tmp_path).refused("neither a file")
        cropi(*command, tmp_path / "gone.yaml").refused("neither a file")


def test_what_a_trainer_of_ones_own_refuses_is_refused_by_the_check_too(
    cropi: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from cropi.errors import InputError\n"
        "class Careful:\n"
        "    def check(self, plan):\n"
        "        raise InputError(f'no steps of {plan.training.prompts_per_step} prompts')\n"
        "    def train(self, plan, judge, out, evaluate, progress, outcome): ...\n"
    )
    config = write_config(tmp_path)
    for command in (("run",), ("config", "check")):
        given = (f"training.engine={tmp_path / 'mine.py'}:Careful", f"out={tmp_path}")
        cropi(*command, config, *given, "training.prompts_per_step=3").refused("no steps of 3")


def test_sets_that_measure_no_target_are_told_before_anything_is_spent(
    cropi: Command, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    renamed = "prompts.test={held-out: [{pocket: [sort], split: test, size: 8}]}"
    (tmp_path / "file").touch()
    for command in (("config", "check"), ("plan",), ("compare",)):
        # A study is refused a folder there, before it does anything.
        outcome = cropi(*command, config, renamed, f"out={tmp_path / 'file'}")
        printed_text = " ".join(outcome.out.split())
        assert (
            printed_text.count("no accuracy counts as targeted: the test sets 'held-out'") == 1
        ), command
        assert "evaluation.targeted" in printed_text
    printed = StringIO()
    check_settings(
        load_config(str(config), [renamed]), None, ProgressReporter(Console(file=printed))
    )
    assert "no accuracy counts as targeted" in " ".join(printed.getvalue().split())
    for meant in ("evaluation.targeted=[held-out]", "evaluation.targeted=[]", "prompts.test={}"):
        assert not load_config(str(config), [renamed, meant]).remarks


def test_a_place_by_url_is_checked_without_the_network(cropi: Command, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    pool = "prompts.pool=[{path: 'nowhere://b/pool.jsonl'}]"
    listed = "prompts.test={sort: [{path: 'https://192.0.2.1/*.jsonl'}]}"
    cropi(
        "config", "check", config, pool, listed, "model.path=nowhere://b/m", "out=nowhere://o"
    ).refused("prompts.pool.0: cannot read", "patterns do not work", "model.path", "cannot write")
    place = "memory://checked/nothing"
    cropi("config", "check", config, f"model.path={place}", f"out={place}").done()
    cropi("compare", config, f"out={place}").refused(place, "out=runs", "cropi run CONFIG")


def test_workers_are_refused_where_they_would_do_nothing(cropi: Command, tmp_path: Path) -> None:
    ray, out = "scale.ray.workers=2", tmp_path / "out.parquet"
    sampled = ("rollout", "--model", "pocket", "--prompts", tmp_path / "p.jsonl", "--out", out)
    server = "engine={name: server, url: 'http://localhost:1'}"
    cropi(*sampled, ray, server).refused("scale has no effect with the engine 'server'")
    cropi(*sampled, "scale.ray.worker=2").refused("scale.ray.worker", "workers")
    cropi(*sampled, ray, "scale.ray.address=ray://here:10001").refused("start cropi on a node")
    cropi("compare", "pocket", "--jobs", "2", ray).refused("--jobs 2", "remove one of the two")


def test_a_misspelt_key_is_refused_with_a_suggestion(cropi: Command, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    cropi("run", config, "selection.ration=0.2").refused("selection.ration", "did you mean 'ratio'")
    cropi("run", config, "ratio").refused("key.path=value")
    cropi("run", config, "seed.x=1").refused("seed")
    cropi("run", config, "baselines=[random, random]").refused("random", "twice")


def test_a_disk_that_fills_up_is_one_clear_line(
    cropi: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cropi.store.run_directory import RunDirectory

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "timings.jsonl")

    monkeypatch.setattr(RunDirectory, "add_timing", full)
    cropi("run", write_config(tmp_path)).refused("No space left on device", "timings.jsonl")


@pytest.mark.parametrize(
    ("saving", "settings"),
    [
        ("transformers.Trainer._save_checkpoint", ()),
        ("support.fakes._Stage.save", FAKE),  # as in a trainer of the user's own
    ],
)
def test_a_disk_that_fills_up_while_a_checkpoint_is_saved_loses_nothing_before(
    cropi: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saving: str,
    settings: tuple[str, ...],
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: full (os error 28)")

    monkeypatch.setattr(saving, full)
    cropi("run", write_config(tmp_path), *settings).refused("No space left on device", "policy")
    stage = tmp_path / "runs/tiny/arms/cropi/stages/0"
    made = ["hidden_states.parquet", "influence.json", "rollouts", "rollouts.json"]
    made += ["scores.parquet", "selection.parquet"]
    assert sorted(f.name for f in stage.iterdir()) == made


def test_an_interrupt_says_how_to_continue(
    cropi: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cropi.curriculum.starting_point.load_prompt_sets", interrupted)
    outcome = cropi("run", write_config(tmp_path))
    assert outcome.code == 130
    assert "continues" in outcome.err


@pytest.mark.parametrize("arguments", [
    ("verify", ""),
    ("report", ""),
    ("select", "--scores", "", "--out", "chosen.parquet"),
    ("select", "--scores", "scores.parquet", "--out="),
    ("rank", "--rollouts", "", "--out", "ranked"),
    ("judge", "pool.parquet", "--prompts", "", "--out", "judged.parquet"),
])  # fmt: skip
def test_an_empty_path_is_not_the_present_folder(
    cropi: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    cropi(*arguments).refused(" is empty; give a path")


def test_a_name_that_is_no_text_is_refused(cropi: Command, tmp_path: Path) -> None:
    out = tmp_path / "bad\udcff.parquet"
    cropi("select", "--scores", tmp_path / "scores.parquet", "--out", out).refused(
        "--out", "control characters"
    )


def test_a_folder_that_was_removed_under_a_shell_is_named(
    cropi: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    outcome = cropi("verify", tmp_path / "tiny.jsonl")
    monkeypatch.chdir(tmp_path)
    outcome.refused("the current directory does not exist any more")


def test_a_report_of_a_folder_that_is_not_a_run_is_refused(cropi: Command, tmp_path: Path) -> None:
    cropi("report", tmp_path).refused("not a run directory")
    cropi("report", tmp_path / "gone").refused("gone")


def test_what_may_not_be_read_is_named(
    cropi: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pocket_jsonl(tmp_path / "prompts.jsonl")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr("cropi.prompts.sources.open_rows", refused)
    cropi("verify", file, "--verifier", "exact").refused(f"{file}: Permission denied", "read")


def test_names_are_shown_as_they_are(cropi: Command, pool: Path, tmp_path: Path) -> None:
    outcome = cropi(
        "score",
        "--model",
        "pocket",
        "--rollouts",
        pool,
        "--target",
        f"[b] (smile)={pool}",
        "--out",
        tmp_path / "o.parquet",
    )
    outcome.done()
    assert "[b] (smile)" in outcome.out


def test_named_files_must_be_named_once(cropi: Command, pool: Path, tmp_path: Path) -> None:
    common = ("score", "--model", "pocket", "--rollouts", pool, "--out", tmp_path / "o.parquet")
    cropi(*common, "--target", pool).refused("NAME=FILE")
    cropi(*common, "--target", f"norm={pool}").refused("norm")
    cropi(*common, "--target", f"v={pool}", "--target", f"v={pool}").refused("'v'")


@pytest.mark.parametrize(("tokens", "cut"), [(1, True), (8, False)])
def test_sampling_says_the_mean_reward_and_what_was_cut_off(
    cropi: Command, tmp_path: Path, tokens: int, cut: bool
) -> None:
    prompts = pocket_jsonl(tmp_path / "prompts.jsonl")
    outcome = cropi(
        "rollout", "--model", "pocket", "--prompts", prompts, "--verifier", "exact",
        "--max-new-tokens", tokens, "--responses", 2, "--out", tmp_path / "out.parquet",
    )  # fmt: skip
    outcome.done()
    assert "mean reward" in outcome.out
    assert ("reached --max-new-tokens" in outcome.out) == cut


def test_lines_of_a_log_are_not_folded(cropi: Command, tmp_path: Path) -> None:
    name = "a-rather-long-name-for-a-run-that-someone-may-well-give-to-one-of-many-runs"
    outcome = cropi(
        "run",
        write_config(tmp_path),
        f"name={name}",
        *FAKE,
        "selection.strategy=random",
        "curriculum.stages=1",
        "curriculum.steps_per_stage=1",
    )
    outcome.done()
    report = [line for line in outcome.out.splitlines() if line.startswith("report: ")]
    assert report == [f"report: {tmp_path / 'runs' / name / 'report.html'}"]


def test_an_output_over_an_input_is_refused_and_the_input_kept(
    cropi: Command, pool: Path, scores: Path, tmp_path: Path
) -> None:
    prompts = pocket_jsonl(tmp_path / "prompts.jsonl")
    before = {path: path.read_bytes() for path in (pool, scores, prompts)}
    scored = ("score", "--model", "pocket", "--rollouts", pool, "--target", f"v={pool}")
    cropi(*scored, "--out", tmp_path / "." / pool.name).refused("--target", "lost")
    cropi("select", "--scores", scores, "--out", scores).refused("--scores", "lost")
    judged = ("judge", pool, "--prompts", prompts, "--out", prompts)
    cropi(*judged).refused("--prompts", "lost")
    evaluated = ("evaluate", "--model", "pocket", "--set", f"v={prompts}", "--out", prompts)
    cropi(*evaluated).refused("--set", "lost")
    assert {path: path.read_bytes() for path in before} == before


def test_targets_that_no_file_can_tell_apart_are_refused(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    scored = ("score", "--model", "pocket", "--rollouts", pool, "--out", tmp_path / "s.parquet")
    cropi(*scored, "--target", f"a={pool}", "--target", f"A={pool}").refused("'a' and 'A'")
