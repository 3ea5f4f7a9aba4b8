"""No setting is inert: the program reads each one somewhere, or refuses it where it would not.

Reading is observed, not listed: while real, tiny work is done with every option switched on, each
attribute access to a section from the program's code (not from the config's checks) is recorded.
A new setting that nothing reads fails here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import cropi
from cropi.config import RunConfig, load_config, resolve_model_path
from cropi.curriculum.loop import run
from cropi.curriculum.run_context import first_stage
from cropi.errors import InputError
from cropi.execution import executor_for
from cropi.execution.settings import RaySettings, ScaleConfig
from cropi.plugins import Choice, find_plugin, plugin_names, settings_of
from cropi.policy.reference import PolicyRef
from cropi.prompts import load_prompt_sets, load_source
from cropi.prompts.settings import PromptSource
from cropi.rollouts import load_engine
from cropi.rollouts.settings import EngineChoice
from cropi.schema import InfluenceEstimate, Sampling
from cropi.selection import find_strategy
from cropi.selection.settings import SelectionConfig, StrategyChoice
from cropi.settings import Section
from cropi.settings_messages import section_in
from cropi.sketches import SketchChoice, make_sketch
from cropi.study.runner import run_threads
from cropi.study.study_plan import StudyPlan
from cropi.training.launcher import accelerate_config
from cropi.training.settings import LaunchSettings
from cropi.training.verl_config import overrides_of
from cropi.training.verl_requirements import interpreter as interpreter_of_verl
from cropi.training.verl_settings import VerlSettings
from cropi.training.verl_stage import environment
from cropi.verifiers import Judge
from support.fake_server import FakeServer, interpreter, serving
from support.tiny_models import mixed_groups
from support.tiny_runs import tiny_config

PROGRAM = Path(cropi.__file__).parent
CHECKS = ("settings.py", "plugins.py", "loading.py", "settings_messages.py", "settings_page.py")
Read = set[tuple[str, str]]

EVERYTHING = (
    "evaluation={every: 1, responses: 2, temperature: 1.0, k: [2], targeted: [sort]}",
    "prompts.test={sort: [{pocket: [sort], split: test, size: 2}]}",
    "prompts.validation={sort: [{pocket: [sort], split: validation, size: 6}]}",
    "prompts.pool=[{pocket: [sort, shift], split: pool, size: 8}]",
    "curriculum={stages: 2, steps_per_stage: 1, refresh: stale, keep_checkpoints: last}",
    "training.responses=2",
    "training.prompts_per_step=2",
    "training.lora={r: 2}",
    "influence.objective={clip: {low: 0.2}, normalisation: constant}",
    "warmup={steps: 1, batch_size: 2, prompts: [{pocket: [sort], split: pool, size: 4}]}",
)
SERVER = ("rollouts.engine=server", "evaluation.engine=transformers")
ROWS = [{"q": f"{n}+{n}=", "a": f"#### {2 * n}"} for n in range(1, 9)]


def sections(section: type[Section] = RunConfig) -> Iterator[type[Section]]:
    """Every section below one, the settings of plug-ins included."""
    yield section
    for field in section.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None and issubclass(inner, Choice):
            for name in plugin_names(inner.kind):
                yield from sections(settings_of(find_plugin(inner.kind, name)))
        elif inner is not None:
            yield from sections(inner)


def is_refusing() -> bool:
    """Whether a setting is read by a trainer that says what it does not go with: a check."""
    frame = sys._getframe(2)
    for _ in range(3):  # as deep as a property of settings that `refusals` asks for
        if frame.f_code.co_name == "refusals":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Which settings the program reads while it does everything that it can do."""
    seen: Read = set()
    plain = Section.__getattribute__

    def recorded(section: Section, name: str) -> Any:
        code = sys._getframe(1).f_code
        file = Path(code.co_filename)
        # A property of a section passes a value on to the program; a validator does not.
        passed_on = file.name in ("settings.py", "run_config.py") and code.co_name[0] != "_"
        outside = PROGRAM in file.parents and file.name not in (*CHECKS, "run_config.py")
        if is_refusing():
            return plain(section, name)
        if outside or (passed_on and code.co_name not in ("is_default", "flat")):
            seen.add((type(section).__name__, name))
        return plain(section, name)

    folder = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", recorded)
        run(tiny_config(folder, *EVERYTHING))
        use_sources(folder, patch)
        use_plugins()
        use_launchers()
        use_servers(folder)
        use_studies(folder)
        assert executor_for(ScaleConfig(ray=RaySettings(workers=2))) is not None
    return seen


def use_sources(folder: Path, patch: pytest.MonkeyPatch) -> None:
    columns = {"prompt": "q", "answer": "a", "answer_regex": "#### (.+)"}
    patch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS))
    hub = PromptSource(
        hub="mine/rows",
        subset="main",
        system="s",
        template="{prompt}",
        chat=True,
        limit=2,
        **columns,
    )
    assert len(load_source(hub, 0)) == 2
    gym = PromptSource(reasoning_gym="chain_sum", options={"min_terms": 2}, size=2, source="sums")
    assert {p.source for p in load_source(gym, 0)} == {"sums"}
    levels = PromptSource(pocket=["sort"], levels=["length 4"], split="pool", size=2)
    assert len(load_source(levels, 0)) == 2
    limited = load_config("pocket", ["prompts.limit=2", "prompts.overlap=keep"])
    load_prompt_sets(limited.prompts, 0)
    two = [{"function": "exact", "weight": 0.5}, {"function": "numeric"}]
    verifiers = load_config("pocket").verifiers.model_copy(update={"threshold": 0.5})
    with Judge(type(verifiers).model_validate({**verifiers.model_dump(), "default": two})):
        pass


def use_plugins() -> None:
    for name in plugin_names("sketch"):
        if name != "exact":
            make_sketch(SketchChoice.of(name, dim=8), {"w": (4, 4)}, 0)
    rollouts = mixed_groups(4)
    sources = {group.prompt_id: group.prompt_id for group in rollouts}
    assert find_strategy("cropi").scoring == "once"
    scores = InfluenceEstimate.from_means([*sources], {"v": np.linspace(0.1, 1, len(sources))})
    for name in ("one_shot", "ranking"):
        settings = SelectionConfig(strategy=StrategyChoice.of(name))
        assert cropi.select(scores, settings).prompt_ids
    for name in ("bandit", "dps", "mopps"):
        settings = SelectionConfig(strategy=StrategyChoice.of(name))
        assert cropi.select(None, settings, rollouts=rollouts, sources=sources).prompt_ids


def use_launchers() -> None:
    launch = LaunchSettings(processes=2)
    assert accelerate_config(launch)["num_processes"] == 2
    cluster = VerlSettings(address="auto", nodes=2)
    assert environment(cluster, interpreter_of_verl(cluster))["RAY_ADDRESS"] == "auto"
    plan = first_stage(load_config("pocket"))
    assert overrides_of(plan, cluster, Path("work"), "model", 8)["trainer.nnodes"] == 2


def use_servers(folder: Path) -> None:
    vllm = EngineChoice.of("vllm", python=interpreter(folder))
    with serving(FakeServer()) as fake:
        for choice in (vllm, EngineChoice.of("server", url=fake.url)):
            engine = load_engine(choice, PolicyRef("pocket"))
            assert len(engine.generate([[5, 6]], Sampling(max_new_tokens=4), 2, 0)) == 1


def use_studies(folder: Path) -> None:
    config = load_config("pocket", [f"out={folder}", "compare.variants={v: {selection.ratio: 1}}"])
    plan = StudyPlan.of(resolve_model_path(config, folder))
    assert run_threads(plan, 1) >= 1


@pytest.mark.parametrize("section", sorted(set(sections()), key=lambda s: s.__name__))
def test_the_program_reads_every_setting(section: type[Section], read: Read) -> None:
    unread = [name for name in section.model_fields if (section.__name__, name) not in read]
    assert unread == []


def test_validation_alone_reads_nothing() -> None:
    seen: list[str] = []
    plain = Section.__getattribute__

    def recorded(section: Section, name: str) -> Any:
        file = Path(sys._getframe(1).f_code.co_filename)
        if (
            PROGRAM in file.parents
            and file.name not in (*CHECKS, "run_config.py")
            and not is_refusing()
        ):
            seen.append(f"{file.name} reads {type(section).__name__}.{name}")
        return plain(section, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", recorded)
        load_config("smollm2")
    selection = [
        line for line in seen if not line.startswith(("strategy.py", "fusion.py", "draw.py"))
    ]
    assert selection == [], "the checks must not count as reading"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["influence.sketch=windowed", "influence.target_memory=bf16"], "target_memory 'bf16'"),
        (["influence.objective.ratio=none", "influence.objective.clip.low=0.1"], "clip needs"),
        (["influence.objective.constant_length=9"], "constant_length 9 has no effect"),
        (["warmup.batch_size=3"], "batch_size: without steps there is no warm-up"),
        (["warmup.prompts=[{pocket: [sort]}]"], "prompts: without steps"),
        (["warmup={steps: 3, template: Answer}"], "lacks '{answer}'"),
        (
            [
                "prompts.validation={}",
                "selection.strategy=random",
                "rollouts.validation_responses=4",
            ],
            "validation_responses 4 has no effect",
        ),
        (
            [
                "prompts.validation={}",
                "prompts.test={}",
                "selection.strategy=random",
                "rollouts.validation_responses=null",
            ],
            "evaluation.every has no effect",
        ),
        (["curriculum.stages=1", "curriculum.refresh=all"], "has no effect with one stage"),
        (["rollouts.engine=server"], "set evaluation.engine to transformers or vllm"),
        ([*SERVER, "evaluation.engine=server"], "set evaluation.engine to transformers or vllm"),
        ([*SERVER, "curriculum.refresh=stale"], "has one policy, and rollouts of the trained"),
        ([*SERVER, "warmup.steps=3"], "has one policy, and warmup.steps makes another"),
        ([*SERVER, "training.lora={r: 2}"], "has one policy, and training.lora makes another"),
        ([*SERVER, "selection.strategy=gradalign"], "has one policy, and rollouts of the trained"),
        (["rollouts.engine=vllm", "training.dynamic_sampling=true"], "dynamic sampling asks for"),
        (["rollouts.engine=vllm", "baselines=[dapo]"], "dynamic sampling asks for"),
        (["evaluation.top_p=0.9"], "top_p 0.9 has no effect on greedy decoding"),
        (["evaluation.responses=2"], "2 greedy responses are all the same"),
        (
            ["prompts.pool=[{path: p.jsonl, size: 3}]"],
            "size has no effect on a source of kind path",
        ),
        (["prompts.pool=[{pocket: [sort], subset: x}]"], "subset has no effect"),
        (["prompts.validation={}", "selection.strategy=oracle"], "'oracle' steers by validation"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(overrides: list[str], part: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("pocket", overrides)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("training.generations", "training.responses"),
        ("training.num_generations", "training.responses"),
        ("rollouts.n", "rollouts.responses"),
        ("evaluation.samples", "evaluation.responses"),
        ("evaluation.num_return_sequences", "evaluation.responses"),
        ("training.max_completion_length", "training.max_new_tokens"),
        ("rollouts.max_tokens", "rollouts.max_new_tokens"),
        ("rollouts.max_response_length", "rollouts.max_new_tokens"),
        ("model.model_name_or_path", "model.path"),
        ("model.attn_implementation", "model.attention"),
        ("training.lora.lora_alpha", "training.lora.alpha"),
        ("training.lr", "training.learning_rate"),
        ("influence.objective.clip_ratio", "influence.objective.clip"),
        ("influence.objective.epsilon", "influence.objective.clip"),
        ("training.grpo", "training.engine.grpo"),
        ("training.stages", "curriculum.stages"),
        ("training.steps_per_stage", "curriculum.steps_per_stage"),
        ("training.keep", "curriculum.keep_checkpoints"),
        ("rollouts.refresh", "curriculum.refresh"),
        ("rollouts.batch_size", "rollouts.engine.batch_size"),
        ("influence.method", "influence.sketch"),
        ("influence.sparse_ratio", "influence.sketch.ratio"),
        ("influence.dim", "influence.sketch.dim"),
        ("selection.memory", "selection.strategy.memory of ranking"),
        ("selection.noise_floor", "selection.strategy.noise_floor of ranking"),
        ("selection.fusion_constant", "selection.strategy.fusion_constant of ranking"),
    ],
)
def test_names_of_other_trainers_and_old_ones_are_explained(key: str, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown key {key} .*it is called {name} here"):
        load_config("pocket", [f"{key}=1"])


def test_the_strategy_influence_is_explained() -> None:
    with pytest.raises(InputError, match="it is called 'one_shot' here"):
        load_config("pocket", ["selection.strategy=influence"])
