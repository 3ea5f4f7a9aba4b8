"""The config: every mistake is one sentence that names the key, the value and the fix."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cropi.config import (
    RolloutsConfig,
    RunConfig,
    SelectionConfig,
    TrainerChoice,
    TrainingConfig,
    load_config,
    presets,
    to_yaml,
    validate,
)
from cropi.errors import InputError

POOL = [{"pocket": ["all"]}]


def minimal() -> dict[str, Any]:
    return {
        "model": {"path": "pocket"},
        "prompts": {"pool": POOL, "validation": {"sort": [{"pocket": ["sort"]}]}},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(minimal()), encoding="utf-8")
    return path


def failure(file: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(str(file), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("selection.ration=0.2", ["selection.ration", "0.2", "did you mean 'ratio'?"]),
        ("influence.objective.klip=1", ["influence.objective.klip", "did you mean 'clip'?"]),
        ("seeed=1", ["unknown key seeed", "did you mean 'seed'?"]),
        ("training.lora.rank=4", ["training.lora.rank", "it is called training.lora.r here"]),
        ("nonsense.zzzzzz=1", ["unknown key nonsense", "allowed: baselines"]),
        ("selection..ratio=1", ["unknown key selection."]),
    ],
)
def test_an_unknown_key_is_named_and_a_known_one_suggested(
    file: Path, override: str, parts: list[str]
) -> None:
    message = failure(file, override)
    assert all(part in message for part in parts), message


def test_an_unknown_key_in_a_list_of_sources_is_named(file: Path) -> None:
    message = failure(file, "prompts.pool=[{pocket: [all], sise: 3}]")
    assert "prompts.pool.0.sise" in message
    assert "did you mean 'size'?" in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("selection.ratio=0", ["selection.ratio = 0", "greater than 0"]),
        ("selection.ratio=1.5", ["selection.ratio = 1.5", "less than or equal to 1"]),
        ("selection.ratio=.nan", ["selection.ratio = nan"]),
        ("selection.ratio=many", ["selection.ratio = 'many'", "number"]),
        ("rollouts.responses=1", ["rollouts.responses = 1", "greater than or equal to 2"]),
        ("rollouts.temperature=0", ["rollouts.temperature = 0", "greater than or equal to 0.001"]),
        ("influence.sketch={name: sparse, dim: 0}", ["influence.sketch.dim = 0"]),
        ("influence.sketch=sparce", ["influence.sketch", "'sparce'", "did you mean 'sparse'"]),
        ("seed=-1", ["seed = -1"]),
        ("seed=1e99", ["seed = 1e+99: give a whole number below 2^63"]),
        ("seed=.nan", ["seed = nan: give a finite number"]),
        ("name=a/b", ["name = 'a/b': give the run's name: letters, digits"]),
        ("model.device=gpu", ["model.device = 'gpu': give auto, cpu, cuda or cuda:N"]),
        (
            "prompts.validation={2024: []}",
            ["prompts.validation has the key 2024: give text, in qu"],
        ),
        ("rollouts={1: 2}", ["unknown key rollouts.1", "allowed: engine, max_new_tokens"]),
        ("evaluation.k=[]", ["evaluation.k = []: give at least one"]),
        ("verifiers.memory_gb=1e99", ["verifiers.memory_gb = 1e+99", "1000000"]),
        ("verifiers.default=3", ["verifiers.default = 3: give text, or a list"]),
        ("verifiers.default=[exact]", ["verifiers.default.0 = 'exact': give a section with"]),
        (
            "verifiers.sources={str: [{function: 1}]}",
            ["verifiers.sources.str.0.function = 1: give"],
        ),
        ("training.lora={target_modules: [3]}", ["training.lora.target_modules.0 = 3: give text"]),
        ("evaluation.k=[8]", ["evaluation", "pass@8 needs responses >= 8"]),
        ("evaluation.responses=4", ["4 greedy responses are all", "evaluation.temperature"]),
        ("prompts.pool=[]", ["prompts.pool"]),
        ("prompts.pool=[{}]", ["path, hub, reasoning_gym, pocket; got none"]),
        ("prompts.pool=[{path: a, hub: b}]", ["got path and hub"]),
        ("prompts.pool=[{path: a, template: Q}]", ["lacks '{prompt}'"]),
        ("evaluation.targeted=[algebra]", ["evaluation.targeted names ['algebra']"]),
        ("prompts.validation={}", ["strategy 'cropi' steers by validation sets"]),
        ("model=pocket", ["model = 'pocket'"]),
    ],
)
def test_an_impossible_value_is_named_with_its_key(
    file: Path, override: str, parts: list[str]
) -> None:
    message = failure(file, override)
    assert all(part in message for part in parts), message
    assert "problems" not in message


@pytest.mark.parametrize("override", [
    "verifiers.workers=1000",
    "compare.threads=5000",
    "scale.ray={workers: 2, cpus: 5000}",
    "training.engine.launch={processes: 5000}",
    "training.engine={name: verl, gpus: 5000}",
    "training.engine={name: verl, nodes: 5000}",
    "rollouts.engine={name: vllm, tensor_parallel: 5000}",
    "rollouts.engine={name: vllm, data_parallel: 5000}",
    "rollouts.engine={name: server, concurrency: 5000}",
])  # fmt: skip
def test_no_more_is_started_at_once_than_machines_bear(file: Path, override: str) -> None:
    message = failure(file, override)
    assert "less than or equal to" in message or "at most" in message
    assert override.partition("=")[0] in message


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["ratio=none", "clip.low=0.1"], "clip needs a ratio"),
        (["constant_length=9"], "constant_length 9 has no effect"),
    ],
)
def test_an_option_without_effect_is_an_error(file: Path, overrides: list[str], part: str) -> None:
    assert part in failure(file, *(f"influence.objective.{o}" for o in overrides))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["training.engine={name: verl, gpus: 3}"], "3 GPUs, which do not divide a step"),
        (["training.engine=verl", "training.lora.r=4"], "leave training.lora out"),
        (["training.engine=verl", "training.dynamic_sampling=true"], "leave dynamic sampling out"),
        (["training.engine.launch.processes=3"], "processes = 3 does not divide a step"),
        (
            ["training.engine.launch.processes=2", "training.dynamic_sampling=true"],
            "does not go with dynamic sampling",
        ),
    ],
)
def test_a_trainer_that_does_not_go_with_the_rest_is_refused(
    file: Path, overrides: list[str], part: str
) -> None:
    with pytest.raises(InputError, match=part):
        load_config(str(file), overrides)


@pytest.mark.parametrize("key", ["model", "prompts"])
def test_a_missing_section_is_named(key: str) -> None:
    values = minimal()
    del values[key]
    with pytest.raises(InputError, match=f"{key} is missing; add it"):
        validate(values, "run.yaml")


def test_overrides_are_applied_in_order_and_may_open_sections(file: Path) -> None:
    overrides = ["selection.ratio=0.2", "selection.ratio=0.3", "training.lora.r=4", "seed=7"]
    config = load_config(str(file), overrides)
    assert config.selection.ratio == 0.3
    assert config.training.lora is not None
    assert config.training.lora.r == 4
    assert config.seed == 7


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("selection.ratio", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("prompts.pool.path=x", "prompts.pool is a value, not a section"),
        ("selection.ratio=[", "is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(file: Path, override: str, part: str) -> None:
    message = failure(file, override)
    assert part in message
    assert override in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "holds no settings"),
        ("- a\n- b\n", "holds no settings"),
        ("model: [", "is not valid YAML"),
        ("model: {path: pocket\nprompts: 3", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_says_so(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert part in failure(tmp_path / "bad.yaml")


def test_a_binary_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read as text" in failure(tmp_path / "bad.yaml")


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    message = failure(tmp_path / "nowhere.yaml")
    assert "is neither a file nor a preset" in message
    assert all(name in message for name in presets())


def test_many_problems_still_make_one_sentence(file: Path) -> None:
    assert failure(file, "selection.ratio=9", "seed=-1").count("; ") == 1


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_valid_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert validate(yaml.safe_load(to_yaml(config)), "again") == config


def test_a_rich_config_survives_a_round_trip(file: Path) -> None:
    config = load_config(
        str(file),
        [
            "influence.objective.clip={low: 0.1, high: 0.3}",
            "training.lora.target_modules=[q_proj, v_proj]",
            "training.engine.grpo={beta: 0.0, note: 'äöü: \u2028 yes', nothing: null, flag: true}",
            "verifiers.sources={'gsm8k*': [{function: math, weight: 0.5}, {function: exact}]}",
            "evaluation={responses: 4, temperature: 0.7, k: [1, 4]}",
            "training.learning_rate=1e-6",
        ],
    )
    again = validate(yaml.safe_load(to_yaml(config)), "again")
    assert again == config
    assert to_yaml(again) == to_yaml(config)
    assert config.training.learning_rate == 1e-6


def test_a_config_cannot_be_changed_after_validation(file: Path) -> None:
    config = load_config(str(file))
    with pytest.raises(InputError, match=r"RunConfig.seed cannot be changed.*'seed': 3"):
        config.seed = 3
    assert config.seed == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectionConfig(ratio=3), "SelectionConfig: ratio = 3: input should be less than"),
        (lambda: SelectionConfig(ration=1), "unknown key ration (value 1); did you mean 'ratio'?"),  # type: ignore[call-arg]
        (lambda: RolloutsConfig(n=8), "RolloutsConfig: unknown key n (value 8); it is called resp"),  # type: ignore[call-arg]
        (lambda: TrainingConfig(engine={"beta": 1}), "unknown key engine.beta (value 1); trl has"),  # type: ignore[arg-type]
        (lambda: TrainerChoice(name="nosuch"), "TrainerChoice: unknown training engine 'nosuch'"),  # type: ignore[call-arg]
        (
            lambda: RunConfig(**{**minimal(), "selection": {"ratio": 3}, "seed": "x"}),
            "RunConfig has 2 problems: (1) seed = 'x': give a whole number; (2) selection.ratio =",
        ),
    ],
)
def test_settings_made_in_python_are_refused_in_the_words_of_a_files(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_sections_within_others_are_the_same_as_those_made_alone() -> None:
    whole = RunConfig(**{**minimal(), "selection": {"ratio": 0.2}})
    assert whole.selection == SelectionConfig(ratio=0.2)
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert whole.model_copy(update={"seed": 3}).seed == 3


def test_loading_a_config_imports_no_torch(file: Path) -> None:
    program = (
        "import sys, cropi, cropi.config; cropi.config.load_config(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exponents_are_numbers_with_or_without_a_point() -> None:
    config = load_config(
        "pocket", ["training.engine.grpo.beta=1e-3", "training.learning_rate=2e-6"]
    )
    assert config.training.engine.settings.grpo["beta"] == pytest.approx(1e-3)
    assert config.training.learning_rate == pytest.approx(2e-6)


def test_without_test_sets_the_validation_sets_are_the_targeted_ones() -> None:
    config = load_config("pocket", ["prompts.test={}"])
    assert config.targeted == list(config.prompts.validation)


@pytest.mark.parametrize("key", ["size=5", "subset=foo", "levels=[easy]"])
def test_a_key_that_a_source_would_ignore_is_refused(key: str) -> None:
    name, value = key.split("=")
    with pytest.raises(InputError, match=f"{name} has no effect on a source of kind path"):
        load_config("pocket", [f"prompts.pool=[{{path: one.jsonl, {name}: {value}}}]"])


def test_execution_settings_determine_nothing() -> None:
    settings = load_config("pocket").result_settings("influence")
    assert "influence.sketch" in settings
    assert "influence.batch_tokens" not in settings


def write(folder: Path, **files: str) -> Path:
    """Write YAML files; return the path of the first one."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_extending_a_preset_merges_sections_and_replaces_lists(tmp_path: Path) -> None:
    text = (
        "extends: pocket\nname: other\nbaselines: [random]\n"
        "prompts: {pool: [{pocket: [sort], split: pool, size: 9}], test: {sort: []}}\n"
        "curriculum: {stages: 2}\ntraining: {engine: {grpo: {warmup_steps: 3}}}\n"
    )
    config, base = load_config(str(write(tmp_path, heir=text))), load_config("pocket")
    assert (config.name, config.curriculum.stages) == ("other", 2)
    assert config.training.learning_rate == base.training.learning_rate
    assert config.training.engine.settings.grpo == {
        **base.training.engine.settings.grpo,
        "warmup_steps": 3,
    }
    assert [source.pocket for source in config.prompts.pool] == [["sort"]]
    assert [baseline.name for baseline in config.baselines] == ["random"]
    assert config.prompts.test == {**base.prompts.test, "sort": []}
    assert config.prompts.validation == base.prompts.validation


def test_a_chain_of_files_is_found_from_each_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, top="extends: pocket\nseed: 1\nname: top\n")
    write(tmp_path / "deep", middle="extends: ../top.yaml\nname: middle\n")
    last = write(tmp_path, last="extends: deep/middle.yaml\nselection: {ratio: 0.2}\n")
    config = load_config(str(last), ["selection.strategy.scoring=stage"])
    assert (config.seed, config.name) == (1, "middle")
    assert (config.selection.ratio, config.selection.strategy.settings.scoring) == (0.2, "stage")
    resolved = yaml.safe_load(to_yaml(config))
    assert "extends" not in resolved
    assert validate(resolved, "again") == config


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"a": "extends: pokket\n"}, ["a.yaml: extends = 'pokket'", "neither a file nor a preset"]),
        ({"a": "extends: gone.yaml\n"}, ["extends = 'gone.yaml'", "neither a file nor a preset"]),
        ({"a": "extends: [pocket]\n"}, ["extends = ['pocket']", "one preset (pocket"]),
        ({"a": "extends: a.yaml\n"}, ["extends = 'a.yaml' leads back to itself"]),
        (
            {"a": "extends: b.yaml\n", "b": "extends: ./a.yaml\n"},
            ["a.yaml: extends = 'b.yaml'", "b.yaml: extends = './a.yaml' leads back to itself"],
        ),
        ({"a": "extends: b.yaml\n", "b": "- 1\n"}, ["extends = 'b.yaml'", "holds no settings"]),
        ({"a": "extends: pocket\ncurriculum: {stagez: 1}\n"}, ["curriculum.stagez", "'stages'"]),
        ({"a": "extends: pocket\ntraining: 3\n"}, ["training = 3"]),
    ],
)
def test_what_cannot_be_extended_is_named(
    tmp_path: Path, files: dict[str, str], parts: list[str]
) -> None:
    message = failure(write(tmp_path, **files))
    assert all(part in message for part in parts), message


def test_every_problem_is_listed_and_numbered() -> None:
    mistakes = ["selection.ratio=ten", "model=pocket", "seed=-1", "prompts.pool=a.jsonl"]
    mistakes += ["rollouts.n=2", "curriculum.stage=3", "training.lora=high"]
    with pytest.raises(InputError) as error:
        load_config("pocket", mistakes)
    message = str(error.value)
    assert "has 7 problems: (1) " in message
    assert all(f"({n}) " in message for n in range(1, 8))
    for part in (
        "selection.ratio = 'ten': give a number",
        "model = 'pocket': give a section with its keys (attention,",
        "prompts.pool = 'a.jsonl': give a list",
        "rollouts.n (value 2); it is called rollouts.responses here",
        "training.lora = 'high': give a section with its keys (alpha,",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("training.epsilon", "for training it is called training.engine.grpo.epsilon here, for "),
        ("influence.objective.epsilon", "it is called influence.objective.clip here"),
    ],
)
def test_an_option_of_the_loss_is_named_for_the_side_that_it_changes(key: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        load_config("pocket", [f"{key}=0.2"])
