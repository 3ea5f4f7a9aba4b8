"""What the results of the Python functions print as."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cropi
from cropi import diagnostics, report
from cropi.config import SelectionConfig
from cropi.influence.cosines import Influence
from cropi.influence.targets import TargetReliability
from cropi.schema import (
    EQUAL_REWARDS,
    SCORED,
    InfluenceEstimate,
    Prompt,
    Response,
    RolloutGroup,
    Selection,
)
from cropi.short_repr import ShortRepr
from cropi.training import StageOutcome
from support.synthetic_study import write_study

MANY = re.compile(r"NDArray|Array|Any|list|dict|tuple|Sequence|Mapping|Counter")
"""In an annotation: may hold more than fits on a screen."""


def dataclasses_by_name() -> dict[str, set[type]]:
    """All dataclasses of the package; a few names are used twice."""
    for module in pkgutil.walk_packages(cropi.__path__, "cropi."):
        if not module.name.endswith(("__main__", "triton_hash")):
            importlib.import_module(module.name)
    named: dict[str, set[type]] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "cropi":
            for value in vars(module).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value):
                    named.setdefault(value.__name__, set()).add(value)
    return named


def public_results() -> Iterator[type]:
    """The dataclasses that public functions return, and those in their fields."""
    named = dataclasses_by_name()
    packages = (cropi, diagnostics, report)
    functions = [getattr(package, name) for package in packages for name in package.__all__]
    waiting = [f.__annotations__["return"] for f in functions if inspect.isfunction(f)]
    seen: set[str] = set()
    while waiting:
        for name in set(re.findall(r"\w+", waiting.pop())) & named.keys() - seen:
            seen.add(name)
            for kind in named[name]:
                waiting += [str(field.type) for field in dataclasses.fields(kind)]
                yield kind


def test_every_public_result_that_may_be_large_has_a_short_repr() -> None:
    results = set(public_results())
    assert {"Influence", "Response", "Staleness"} <= {kind.__name__ for kind in results}
    large = {
        kind.__name__
        for kind in results
        if any(MANY.search(str(field.type)) for field in dataclasses.fields(kind))
    }
    short = {kind.__name__ for kind in results if issubclass(kind, ShortRepr)}
    assert large - short == set()
    assert all("__repr__" not in vars(kind) for kind in results if issubclass(kind, ShortRepr))


def test_influence_on_a_pool_is_counts_and_ranges() -> None:
    ids = [f"prompt-{number}" for number in range(5_000)]
    estimate = InfluenceEstimate.from_means(ids, {"val": np.linspace(-0.25, 0.5, 5_000)})
    estimate.mean["val"][1:1_001] = np.nan
    estimate.status[1:1_001] = [EQUAL_REWARDS] * 1_000
    reliability = {"val": TargetReliability(20, 2 / 3, 15.0, 0.1)}
    text = repr(Influence(estimate, reliability, 12_345, ["the first note"]))
    assert "prompt_ids=['prompt-0', 'prompt-1', 'prompt-2', ... 5,000 in all]" in text
    assert "mean={'val': float32 [5000], -0.25 to 0.5, 1,000 NaN}" in text
    assert "standard_error={'val': float64 [5000], all NaN}" in text
    assert f"status=[4,000 x {SCORED!r}, 1,000 x {EQUAL_REWARDS!r}]" in text
    assert "split_half=0.6667" in text
    assert "notes=['the first note']" in text
    assert "effective_share" not in text, "what has its default is left out"
    assert len(text.splitlines()) < 20


def test_a_selection_and_a_group_show_what_few_numbers_they_have() -> None:
    chosen = Selection(["a", "b"], np.array([0.5, 1 / 3]), {"t": np.array([1, 2], np.int32)})
    assert repr(chosen) == (
        "Selection(prompt_ids=['a', 'b'], scores=float64 [0.5, 0.3333], ranks={'t': int32 [1, 2]})"
    )
    ids, logprobs = np.arange(300, dtype=np.int32), np.full(300, -0.5, np.float32)
    responses = [Response(ids, logprobs, reward=reward) for reward in (0.0, 1.0)]
    text = str(RolloutGroup("a", ids, responses))
    assert "prompt_ids=int32 [300], 0 to 299" in text
    assert "responses=[2 x Response]" in text
    assert "rewards=float64 [0, 1]" in text
    assert "logprobs=float32 [300], all -0.5" in repr(responses[0])


def test_what_is_not_there_yet_is_left_out_and_an_array_without_numbers_is_its_shape() -> None:
    for kind in (Selection, RolloutGroup, Influence, SelectionConfig):
        assert repr(object.__new__(kind)) == f"{kind.__name__}()"
    group = RolloutGroup("a", np.zeros((1_000_000, 0), np.int32), [])
    assert "prompt_ids=int32 [1000000, 0]" in repr(group)


def test_a_prompt_is_cut_where_its_text_is_long() -> None:
    long = "a question " * 1_000
    for prompt in (
        Prompt("a", "1", "math", prompt=long, extra={"reference": long}),
        Prompt("a", "1", "math", messages=({"role": "user", "content": long},) * 50),
    ):
        assert "a question" in repr(prompt)
        assert len(repr(prompt)) < 600


def test_a_policy_is_named_by_its_model_and_sizes() -> None:
    policy = cropi.load_policy("pocket", device="cpu")
    text = repr(policy)
    assert "model=Qwen2ForCausalLM of 811,648 parameters, float32 on cpu" in text
    assert re.search(r"tokenizer=\w+ of 48 tokens", text)
    assert len(text.splitlines()) < 10


def test_a_long_stage_shows_its_first_rows() -> None:
    rows = [{"step": step, "reward": 0.1 * step, "grad_norm": 1.0} for step in range(200)]
    text = repr(StageOutcome(log=rows, clock=[(step, float(step)) for step in range(200)]))
    assert text.count("'step'") == 3
    assert text.count("200 in all") == 2


def test_settings_print_what_is_not_the_default() -> None:
    config = cropi.load_config("pocket", ["selection.ratio=0.3"])
    text = str(config)
    assert "selection=SelectionConfig(strategy=" not in text
    assert "selection=SelectionConfig(ratio=0.3)" in text
    assert "temperature" not in text
    assert len(text.splitlines()) < 50
    assert config.model_dump()["rollouts"]["temperature"] == 1


def test_a_study_is_a_screen_of_names(tmp_path: Path) -> None:
    curve = [0.2, 0.3, 0.4, 0.5, 0.6]
    accuracies = {name: dict.fromkeys(range(5), curve) for name in ("full", "cropi")}
    text = repr(report.write_study_report(write_study(tmp_path / "study", accuracies)))
    assert "strategies={'full': StrategyResult(...), 'cropi': StrategyResult(...)}" in text
    assert "runs=[10 x RunResult]" in text
    assert len(text.splitlines()) < 30
