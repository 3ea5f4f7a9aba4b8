"""A study's plan takes strategies by name or with settings, and variants with dotted settings."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cropi.config import RunConfig, load_config, to_yaml, validate
from cropi.errors import InputError
from cropi.execution.on_ray import RayWorkers
from cropi.execution.settings import ScaleConfig
from cropi.selection.settings import StrategyChoice
from cropi.study.runner import study_workers
from cropi.study.study_plan import StudyPlan


def plan(*overrides: str) -> StudyPlan:
    return StudyPlan.of(load_config("pocket", ["compare.seeds=[0]", *overrides]))


def strategies(planned: StudyPlan) -> dict[str, StrategyChoice]:
    return {label: changed(planned, label).selection.strategy for label in planned.labels}


def changed(planned: StudyPlan, label: str) -> RunConfig:
    (config,) = [run.config for run in planned.runs() if run.label == label]
    return config


def test_a_strategy_may_be_a_mapping_with_settings() -> None:
    planned = plan("compare.strategies=[random, {name: ranking, memory: 0}]")
    assert strategies(planned) == {
        "full": StrategyChoice.of("full"),
        "random": StrategyChoice.of("random"),
        "ranking": StrategyChoice.of("ranking", memory=0),
    }


def test_a_label_keeps_the_settings_that_the_config_gives_its_strategy() -> None:
    planned = plan("selection.strategy.scoring=stage", "compare.strategies=[cropi, one_shot]")
    assert strategies(planned)["cropi"] == StrategyChoice.of("cropi", scoring="stage")
    assert strategies(planned)["one_shot"] == StrategyChoice.of("one_shot")


def test_what_was_compared_is_written_with_its_settings() -> None:
    planned = plan("compare.strategies=[random, {name: ranking, memory: 0}]")
    values: dict[str, Any] = yaml.safe_load(to_yaml(planned.as_config()))
    again = StudyPlan.of(validate(values, "study.yaml"))
    assert strategies(again) == strategies(planned)


def test_a_dotted_setting_of_a_variant_needs_no_mapping() -> None:
    planned = plan(
        "compare.variants={again: {selection.strategy.scoring: stage}, paper2: {"
        "selection.strategy: {name: ranking, noise_floor: 0}}}",
        "compare.strategies=[again, paper2, paper]",
    )
    assert strategies(planned) == {
        "full": StrategyChoice.of("full"),
        "again": StrategyChoice.of("cropi", scoring="stage"),
        "paper2": StrategyChoice.of("ranking", noise_floor=0),
        "paper": StrategyChoice.of("ranking", noise_floor=0, memory=0, fusion_constant=0),
    }


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("compare.strategies=[cropy]", ["unknown strategy 'cropy'", "did you mean 'cropi'?"]),
        ("compare.strategies=[{name: random, memory: 0}]", ["random has no settings"]),
        ("compare.strategies=[v]", ["or a variant under compare.variants"]),
        (
            "compare={strategies: [v], variants: {v: {selection.strategy.ratio: 1}}}",
            ["selection.strategy.ratio", "cropi has most, others, sample, scoring"],
        ),
    ],
)
def test_what_cannot_be_compared_is_named(override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        plan(override)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_runs_that_ray_places_use_no_workers_of_their_own() -> None:
    planned = plan("scale.ray.workers=2", "compare.strategies=[random]")
    assert {run.config.scale for run in planned.runs()} == {ScaleConfig()}
    assert planned.shared(0).scale == ScaleConfig()
    assert isinstance(study_workers(planned, jobs=1), RayWorkers)


def test_workers_have_the_threads_that_a_study_asks_for() -> None:
    asked = ("compare.threads=2", "compare.strategies=[random]")
    assert study_workers(plan(*asked, "scale.ray={workers: 3, cpus: 2}"), jobs=1).threads == 2
    with pytest.raises(InputError, match="gives each run 1 threads, and this study's runs have 2"):
        study_workers(plan(*asked, "scale.ray.workers=3"), jobs=1)
