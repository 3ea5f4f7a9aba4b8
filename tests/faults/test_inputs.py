"""Hostile configs, names, rows and model folders: one short sentence each, and nothing silent."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cropi.cli.options import named_files
from cropi.config import load_config, to_yaml, validate, yaml_text
from cropi.config.check import problems_of
from cropi.errors import InputError
from cropi.policy.checkpoint_source import locate
from cropi.policy.checkpoints import load_tokenizer_and_configs
from cropi.prompts import Room, drop_overlong, load_prompt_sets, read_prompts
from cropi.prompts.overlap import normalised
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.prompts.sources import load_source
from cropi.text import is_control, printable, require_name, require_names, require_path, shown

LONGEST_MESSAGE = 2_500
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(action: Any, *arguments: Any) -> str:
    """The sentence with which an action refuses its arguments."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert len(message) < LONGEST_MESSAGE
    assert not any(is_control(c) for c in message), message
    return message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' appears twice (line 2"),
        ("a: {b: {c: 1, c: 1}}", "the key 'c' appears twice"),
        ("{<<: {a: 1}, <<: {b: 1}}", "the key '<<' appears twice"),
        (BOMB, "aliases make more than"),
        ("a: &a [*a]", "leads back"),
        ("a: &a {b: *a}", "leads back"),
        ("[" * 100_000, "nested more than"),
        ("- " * 5_000, "nested more than"),
        ("seed: " + "9" * 5_000, "(5,000 digits) is beyond 64 bits"),
        ("x: 1e999", "larger than"),
        ("!!python/object/apply:os.system [ls]", "not supported"),
        ("!!timestamp 2020-99-99", "not supported"),
        ("!!int abc", "is tagged int and is not one"),
        ("!!bool yes", "is tagged bool and is not one"),
        ("? [a]\n: 1", "a key is a list"),
        ("a: 1\n---\nb: 2", "single document"),
        ("\x00", "not valid YAML"),
        ("x" * 1_000_001, "more than the 1,000,000"),
    ],
)
def test_yaml_beyond_its_limits_is_refused_in_one_sentence(text: str, part: str) -> None:
    assert part in refusal(yaml_text.parse, text, "config x")


def test_yaml_is_read_as_version_1_2() -> None:
    text = "[on, yes, 12:30, 010, 0o10, 0x1F, 1e-6, 2020-01-01, ~, .inf, True, 1_000]"
    values = ["on", "yes", "12:30", 10, 8, 31, 1e-6, "2020-01-01", None, float("inf")]
    assert yaml_text.parse(text, "x") == [*values, True, "1_000"]


def test_a_merged_mapping_may_be_used_again() -> None:
    text = "a: &a {x: 1, y: 2}\nb: [{<<: &c {<<: *a, x: 3}, y: 4}, *c, *a]"
    values = yaml_text.parse(text, "x")["b"]
    assert values == [{"x": 3, "y": 4}, {"x": 3, "y": 2}, {"x": 1, "y": 2}]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text("ab:#1-e", max_size=4), each),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150)
@given(plain)
def test_what_is_written_as_yaml_comes_back_in_either_version(value: Any) -> None:
    text = yaml_text.dump(value)
    assert yaml_text.parse(text, "x") == value
    assert yaml.safe_load(text) == value
    assert not any(is_control(c) for c in text.replace("\n", ""))


@settings(max_examples=150)
@given(st.text(alphabet="{}[]&*!|>:#-,'\"%@`? \n\tab01.e<~", max_size=60))
def test_any_text_is_read_or_refused_as_yaml(text: str) -> None:
    message = ""
    try:
        yaml_text.parse(text, "x")
    except InputError as error:
        message = str(error)
    assert len(message) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    "override",
    [
        "prompts.validation={../pool: [{pocket: [sort]}]}",
        "prompts.validation={a/b: [{pocket: [sort]}]}",
        "prompts.test={'*': [{pocket: [sort]}]}",
        r'prompts.test={"a\nb": [{pocket: [sort]}]}',
        r'prompts.test={"a\0b": [{pocket: [sort]}]}',
        r'prompts.test={"\e[31m": [{pocket: [sort]}]}',
        r'prompts.test={"\u202ex": [{pocket: [sort]}]}',
        "prompts.test={.hidden: [{pocket: [sort]}]}",
        "prompts.test={'': [{pocket: [sort]}]}",
        "prompts.test={Sort: [{pocket: [sort]}], sort: [{pocket: [sort]}]}",
        "compare.variants={__proto__: {selection.ratio: 0.2}}",
        "compare.variants={'a/../../b': {selection.ratio: 0.2}}",
        "name=" + "n" * 300,
        "name=..",
        "out=" + "o" * 300,
        r'out="a\0b"',
        "out=~nobody-has-this-name/x",
        "model.path=" + "m/" * 1_500,
        r'model.path="\ud800"',
        "prompts.pool=[{path: " + "p" * 5_000 + "}]",
        "selection.strategy=" + "s" * 5_000,
        "verifiers.threshold=" + "1" * 400,
        "seed=" + "1" * 5_000,
        "a" * 100_000 + "=1",
        "x=" + "y" * 581_000,
        ".".join(["k"] * 2_000) + "=1",
        "\x1b[31m=1",
        r'prompts.chat_template_kwargs={"a": "\0"}',
    ],
)
def test_hostile_names_and_values_are_refused_at_load(override: str) -> None:
    refusal(load_config, "pocket", [override])


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    try:
        require_name(name, "a set")
    except InputError:
        return
    path = Path("/base") / f"{name}.parquet"
    assert path.resolve().parent == Path("/base")
    assert printable(name) == name
    path.as_posix().encode()


@settings(max_examples=200)
@given(st.text())
def test_nothing_that_is_shown_commands_a_terminal(text: str) -> None:
    for escaped in (printable(text).replace("\n", "").replace("\t", ""), shown(text)):
        assert not any(is_control(c) for c in escaped)
    assert len(shown(text, 50)) <= 53


def test_a_target_of_the_command_line_has_a_name() -> None:
    assert "control characters" in refusal(named_files, ["a\x1b=x.parquet"], "target")
    assert "contains /" in refusal(named_files, ["../pool=x.parquet"], "target")


def test_names_that_are_one_file_on_some_systems_are_refused() -> None:
    assert "same file" in refusal(require_names, ["\u00e9t\u00e9", "e\u0301t\u00e9"], "a set")
    require_names(["gsm8k", "AIME 2024", "ramp(0.5)", "\u00fcbung"], "a set")
    assert require_path("hf://datasets/a/b.jsonl") == "hf://datasets/a/b.jsonl"


def test_nested_plain_values_are_bounded() -> None:
    nested: Any = 1
    for _ in range(2_000):
        nested = {"k": nested}
    assert "nested more than" in refusal(validate, {"model": nested}, "run.yaml")


ROWS = {
    "surrogate": r'{"prompt": "a\ud800", "answer": "1"}',
    "surrogate in a name": r'{"prompt": "a", "answer": "1", "\udfff": 1}',
    "nesting": '{"prompt": "a", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep extra": '{"prompt": "a", "answer": "1", "x": ' + "[" * 200 + "]" * 200 + "}",
    "huge integer": '{"prompt": "a", "answer": ' + "1" * 5_000 + "}",
    "large integer": '{"prompt": "a", "answer": ' + "1" * 2_000 + "}",
    "key twice": '{"prompt": "a", "answer": "1", "answer": "2"}',
    "not an object": "[1]",
    "long prompt": json.dumps({"prompt": "x" * 5_000_000, "answer": "1"}),
    "empty": '{"prompt": "\\u0000 ", "answer": ""}',
    "blank id": '{"prompt": "a", "answer": "1", "id": "  "}',
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_is_named_with_file_and_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "fine", "answer": "1"}\n' + ROWS[name] + "\n")
    assert f"{path} row 2" in refusal(load_source, PromptSource(path=str(path)), 0)


def parquet(path: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": ["1", "2"], **columns}), path)
    return path


def test_parquet_cells_that_python_cannot_hold_are_named(tmp_path: Path) -> None:
    import pyarrow as pa

    far = pa.array([0, 10_000_000], pa.int32()).cast(pa.date32())
    path = parquet(tmp_path / "dates.parquet", when=far)
    message = refusal(load_source, PromptSource(path=str(path)), 0)
    assert f"{path} row 2, column 'when'" in message


def test_maps_in_parquet_become_objects_and_dates_text(tmp_path: Path) -> None:
    import pyarrow as pa

    maps = pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))
    path = parquet(tmp_path / "x.parquet", facts=maps, when=pa.array([date(2020, 1, 2), None]))
    first, second = load_source(PromptSource(path=str(path)), 0)
    assert first.extra == {"facts": {"k": 1}, "when": "2020-01-02"}
    assert second.extra == {"facts": {}}
    twice = pa.array([[("k", 1), ("k", 2)], []], pa.map_(pa.string(), pa.int64()))
    path = parquet(tmp_path / "y.parquet", facts=twice)
    assert "row 1, column 'facts'" in refusal(load_source, PromptSource(path=str(path)), 0)


@pytest.mark.parametrize("extra", ["{", "[1]", "1", None])
def test_a_damaged_prompt_store_names_its_row(tmp_path: Path, extra: Any) -> None:
    message = [[{"role": "user", "content": "a"}]] * 2
    ids = {"prompt_id": ["a", "b"], "source": ["s", "s"], "messages": message}
    path = parquet(tmp_path / "p.parquet", **ids, prompt=[None, None], extra=["{}", extra])
    assert f"{path} row 2 is not a prompt" in refusal(read_prompts, path)


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": ["text", None]},
        {"messages": [[{"role": "user"}], None]},
        {"messages": [[{"role": "user", "content": 1}], None]},
        {"prompt": [None, 2.0]},
        {"prompt_id": ["a", " "]},
        {"prompt_id": ["a", "a"]},
        {"tools": [None, '{"name": "f"}']},
    ],
    ids=str,
)
def test_a_prompt_store_of_another_structure_names_its_row(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    chat = [{"role": "user", "content": "q"}]
    columns: dict[str, Any] = {"prompt_id": ["a", "b"], "source": ["s", "s"], "extra": ["{}"] * 2}
    columns |= {"prompt": [None, "q"], "messages": [chat, None]}
    assert len(read_prompts(parquet(tmp_path / "whole.parquet", **columns))) == 2
    path = parquet(tmp_path / "p.parquet", **{**columns, **changed})
    assert f"{path} row " in refusal(read_prompts, path)


class NoTokenizer:
    """Fails where a prompt is tokenised."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        raise AssertionError(f"tokenised {len(text)} characters")


def test_a_prompt_that_is_far_too_long_is_not_tokenised(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 3_000_000, "answer": "1"}))
    sets = load_prompt_sets(PromptsConfig(pool=[PromptSource(path=str(path))]), 0)
    assert "over 4096 tokens" in refusal(drop_overlong, NoTokenizer(), sets, Room(4096))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What\u2019s John\u2019s age?", "What's Johns age"),
        ("If x, then y", "If x then y"),
        ("Solve $3x=9$ for x.", r"Solve \(3x = 9\) for x"),
        ("Is 3 + 4 even", "Is 3+4 even?"),
        ("\u201cHi\u201d he said", "Hi, he said"),
        (r"what is 3 \times 4", "What is 3 \u00d7 4"),
        ("Compute 5 \u2212 3 now", "compute 5-3 now"),
        ("- Solve it now", "Solve it now!"),
        ("**What is 3 + 4?**", "what is 3+4"),
        ("Find x\u00b2 + 1.", "find x^{2} + 1"),
        ("What is 1\u00bd cups", "what is 1 1/2 cups?"),
        ("x = -3", "x=-3"),
        ("\u00bfCu\u00e1nto es 3?", "cu\u00e1nto es 3"),
    ],
)
def test_near_equal_questions_are_one(left: str, right: str) -> None:
    assert normalised(left) == normalised(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("f'(x)+1", "f(x)+1"),
        ("1,000 x", "1.000 x"),
        ("at 12:30 x", "at 1230 x"),
        ("x 3.5 y", "x 35 y"),
        ("a (1,2) b", "a (12) b"),
        ("2*(3+4) x", "2*3+4 x"),
        ("is 3<4 x", "is 3>4 x"),
        ("x 3! y", "x 3 y"),
        ("-1,0,0", "1,0,0"),
        (".5 + 1", "5 + 1"),
        ("what is .5", "what is 5"),
        ("Compute 2\u00b3", "Compute 23"),
        ("log\u2082 8", "log28"),
        ("is 1\u00bd", "is 11/2"),
        ("[0,1)", "(0,1]"),
        ("{1,2}", "(1,2)"),
        ("take 50%", "take 50"),
        ("find f'", "find f"),
        ("what is n!", "what is n"),
        ("what is 5!", "what is 5"),
        ("points 5 -3", "points 5 - 3"),
        ("-x + 3", "x + 3"),
        ("+5", "-5"),
        ("1.5", "15"),
        ("1,5", "15"),
        ("1 5", "15"),
        ("|-3|", "|3|"),
        ("3 / 4", "3 4"),
    ],
)
def test_other_questions_stay_two(left: str, right: str) -> None:
    assert normalised(left) != normalised(right)


def test_shared_phrases_are_reported_and_kept(tmp_path: Path) -> None:
    story = "Anna has three red apples and buys seven more at noon"
    for name, text in (("pool", f"{story} today"), ("test", f"Yesterday {story}, how many?")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": text, "answer": "10"}))
    sources = {
        name: [PromptSource(path=str(tmp_path / f"{name}.jsonl"))] for name in ("pool", "test")
    }
    sets = load_prompt_sets(PromptsConfig(pool=sources["pool"], test={"t": sources["test"]}), 0)
    assert len(sets.pool) == 1
    assert sets.notes.phrases["test t"].prompts == 1
    assert any("8 words in a row of test t" in line for line in sets.notes.lines())


def test_a_check_names_all_problems_at_once_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("1,2")
    (tmp_path / "b.jsonl").write_text(ROWS["surrogate"])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and junk")
    (tmp_path / "judge.py").write_text("def other(): pass\n")
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    (tmp_path / "run.yaml").write_text(
        "extends: pocket\nprompts: {pool: [{path: a.xlsx}, {path: b.jsonl}, {path: c.parquet}, "
        "{path: gone.jsonl}]}\nverifiers: {default: judge.py:missing, sources: {x: broken.py:f}}\n"
    )
    program = (
        "import sys, pathlib; from cropi.config import load_config\n"
        "from cropi.config.check import problems_of\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "print(*problems_of(load_config(str(path)), path.parent), sep='\\n')\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *problems, modules = done.stdout.splitlines()
    assert modules == "[]"
    parts = ["'.xlsx'", "b.jsonl row 1", "c.parquet", "gone.jsonl", "'missing'", "not_there_at_all"]
    assert len(problems) == len(parts)
    assert all(part in problem for part, problem in zip(parts, problems, strict=True)), problems


def test_a_check_tries_the_verifier_on_the_first_answers(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text('{"prompt": "q", "answer": "no number"}')
    overrides = [f"prompts.pool=[{{path: {tmp_path}/pool.jsonl}}]", "verifiers.default=numeric"]
    (problem,) = problems_of(
        load_config("pocket", ["verifiers.sources={pocket*: exact}", *overrides])
    )
    assert "the answer 'no number' has no number" in problem
    assert problems_of(load_config("pocket")) == []


def test_settings_and_files_are_wrong_at_once_and_torch_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text(ROWS["surrogate"])
    (tmp_path / "model").mkdir()
    (tmp_path / "run.yaml").write_text(
        "extends: pocket\nseed: true\nselection: {ratio: 3}\nmodel: {path: model}\n"
        "prompts: {pool: [{path: pool.jsonl}, {path: gone.jsonl}]}\n"
        "verifiers: {default: exat}\n"
        "training: {engine: {name: trl, grpo: {betta: 1}}}\n"
    )
    program = (
        "import sys; from cropi.cli import main\n"
        "for command in ('config check', 'run', 'compare'):\n"
        "    sys.argv = ['cropi', *command.split(), 'run.yaml']\n"
        "    try: main()\n"
        "    except SystemExit as stop: print(stop.code)\n"
        "    print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    arguments = [sys.executable, "-c", program]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "[]"] * 3
    sentences = done.stderr.splitlines()
    assert len(sentences) == 3, sentences
    parts = ["seed = True", "selection.ratio = 3", "pool.jsonl row 1", "gone.jsonl", "'exat'"]
    parts += ["model.path: directory", "lacks config.json", "did you mean 'beta'"]
    for sentence in sentences:
        assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.engine.grpo={lr_scheduler_type: linaer}", "give one of linear"),
        ("training.engine.grpo={beta: true}", "beta = True: give a number"),
        ("training.engine.grpo={logging_steps: ten}", "give a number"),
        ("training.engine.grpo={loss_type: grop}", "unknown to TRL"),
        ("training.engine.grpo={max_steps: 5}", "is decided by curriculum.steps_per_stage"),
        ("training.engine.grpo={optim: 3}", ""),
        ("prompts.test={empty: []}", "prompts.test.empty = []"),
        ("model.path=/not/there", "'/not/there' is neither a directory"),
    ],
)
def test_a_check_sees_what_the_trainer_and_the_model_folder_lack(override: str, part: str) -> None:
    problems = problems_of(load_config("pocket", [override]))
    assert len(problems) == bool(part), problems
    assert all(part in problem for problem in problems)


def test_every_key_of_trl_is_known_without_importing_it() -> None:
    from dataclasses import fields

    from trl import GRPOConfig

    from cropi.training.grpo_keys import grpo_keys

    assert set(grpo_keys()) == {field.name for field in fields(GRPOConfig)}


@pytest.mark.parametrize(
    "override",
    [
        "seed=true",
        "training.learning_rate=true",
        "evaluation.k=[true]",
        "influence.share_prefix=1",
        "model.trust_remote_code='yes'",
        "curriculum.stages=9223372036854775807",
        "rollouts.responses=100000000",
        "verifiers.timeout=1e-320",
        "verifiers.workers=100000",
        "selection.strategy=os:system",
        "influence.sketch=os.path:sep",
        "rollouts.engine=json:__name__",
        "training.engine=builtins:eval",
        "out=' '",
        r'model.revision="\u202e"',
    ],
)
def test_values_and_objects_of_another_kind_are_refused_at_load(override: str) -> None:
    refusal(load_config, "pocket", [override])


def test_a_function_that_is_no_plug_in_is_refused_when_it_is_called() -> None:
    from cropi.sketches.settings import SketchChoice

    message = refusal(lambda: SketchChoice.of("os.path:join").build(shapes={}, seed=0))
    assert "sketch 'os.path:join' cannot be made" in message


def model_folder(folder: Path, **config: Any) -> Path:
    from cropi.pocket import model_dir

    for file in model_dir().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_attention_from_the_hub_is_code(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, _attn_implementation="somebody/attention")
    message = refusal(load_tokenizer_and_configs, locate(str(folder), None))
    assert "names code on the hub" in message


@pytest.mark.parametrize("content", ["null", "[]", '{"eos_token_id": "x"}'])
def test_a_damaged_generation_config_is_a_sentence(tmp_path: Path, content: str) -> None:
    from cropi.policy.reference import PolicyRef

    folder = model_folder(tmp_path)
    (folder / "generation_config.json").write_text(content)
    assert "model" in refusal(lambda: PolicyRef(str(folder), device="cpu").load())


@pytest.mark.parametrize("kind", ["bool", "int8", "float8_e4m3fn"])
def test_weights_that_are_no_numbers_of_their_own_are_refused(tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from cropi.policy.loading import load_model

    path = model_folder(tmp_path) / "model.safetensors"
    weights = {name: w.to(getattr(torch, kind)) for name, w in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    assert "weight" in refusal(lambda: load_model(str(tmp_path), device="cpu"))


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"model": 1}', "\x00"])
def test_a_damaged_tokenizer_is_a_sentence(tmp_path: Path, content: str) -> None:
    folder = model_folder(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    assert "the tokenizer" in refusal(load_tokenizer_and_configs, locate(str(folder), None))


@pytest.mark.parametrize(
    "config", [{"hidden_size": 0}, {"dtype": "junk"}, {"num_attention_heads": 0}]
)
def test_a_damaged_model_config_is_a_sentence(tmp_path: Path, config: dict[str, Any]) -> None:
    from cropi.policy.loading import load_policy

    refusal(load_policy, model_folder(tmp_path, **config))


def test_a_shown_config_loads_back(tmp_path: Path) -> None:
    config = load_config("pocket", [r'prompts.pool=[{pocket: [all], system: "\u202e on 12:30"}]'])
    text = to_yaml(config)
    assert not any(is_control(c) for c in text.replace("\n", ""))
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(str(tmp_path / "again.yaml")) == config


numbers = st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,3})?|-?\.[0-9]{1,3}", fullmatch=True)


@settings(max_examples=200)
@given(numbers, numbers, st.sampled_from(["{}", "x = {}", "({}, 2)", "What is {}?", "at {} now."]))
def test_texts_with_different_numbers_stay_two(one: str, other: str, text: str) -> None:
    same = normalised(text.format(one)) == normalised(text.format(other))
    assert same is (one == other)


GRADERS = """
import os
class Silent(Exception):
    def __str__(self):
        raise RuntimeError
def base(data_source, solution_str, ground_truth): raise BaseException("b")
def interrupt(data_source, solution_str, ground_truth): raise KeyboardInterrupt
def silent(data_source, solution_str, ground_truth): raise Silent
def fork(data_source, solution_str, ground_truth, extra_info=None):
    os.fork()
    return 1.0
"""


def test_whatever_a_grader_does_concerns_its_own_response_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from cropi.schema import Prompt
    from cropi.verifiers import Judge
    from cropi.verifiers.settings import VerifiersConfig

    (tmp_path / "g.py").write_text(GRADERS)
    names = ["base", "interrupt", "silent", "fork"]
    sources = {name: f"{tmp_path}/g.py:{name}" for name in names}
    config = VerifiersConfig(default="exact", sources=sources, workers=1)
    items = [
        (Prompt(f"{source}{n}", "1", source, prompt="q"), "1")
        for n, name in enumerate(names)
        for source in (name, "plain")
    ]
    with Judge(config) as judge:
        verdicts = judge.judge(items)
    assert [v.status for v in verdicts[::2]] == ["error", "error", "error", "ok"]
    assert [(v.status, v.reward) for v in verdicts[1::2]] == [("ok", 1.0)] * 4
    assert "Traceback" not in capfd.readouterr().err
