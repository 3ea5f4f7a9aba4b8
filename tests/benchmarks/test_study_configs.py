"""The study's pocket regimes: each differs from the clean one in its prompts or verdicts alone.

The study on a language model stands apart; its targets are a small part of its pool too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from noise import FLIP_SHARE, pool_of

from cropi.config import RunConfig, check_files, load_config
from cropi.pocket.tasks import SKILLS, TARGETS, split_of
from cropi.prompts import PromptSets, load_prompt_sets
from cropi.schema import Prompt, derive_seed
from cropi.verifiers import Judge
from study_report.results import APART, LANGUAGE_MODELS

FOLDER = Path(__file__).parents[2] / "benchmarks" / "study"
REGIMES = ("clean", "imbalanced", "noisy_answers", "noisy_verdicts", "low_utility", "shifted")
OTHERS = [name for name in SKILLS if name not in TARGETS]
LONGEST = {"sort": "length 6", "shift": "length 5"}


def config_of(regime: str) -> RunConfig:
    return load_config(str(FOLDER / f"{regime}.yaml"))


@cache
def sets_of(regime: str) -> PromptSets:
    """The prompts as a run with seed 0 loads them."""
    return load_prompt_sets(config_of(regime).prompts, derive_seed(0, "prompts"), FOLDER)


def skills(prompts: Iterable[Prompt]) -> Counter[str]:
    return Counter(p.source.removeprefix("pocket/") for p in prompts)


def right_answer(prompt: Prompt) -> str:
    return SKILLS[prompt.extra["skill"]].answer(prompt.content)


def test_every_regime_has_its_config() -> None:
    assert {*REGIMES, *LANGUAGE_MODELS} == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_differs_from_the_clean_one_in_prompts_and_verdicts_alone(regime: str) -> None:
    config, clean = (config_of(name).model_dump(exclude={"compare"}) for name in (regime, "clean"))
    check_files(config_of(regime), FOLDER)
    changed = {key for key, value in config.items() if value != clean[key]}
    changes = {"clean": set(), "noisy_verdicts": {"name", "verifiers"}}
    assert changed == changes.get(regime, {"name", "prompts"})
    assert config["name"] == regime


def test_the_clean_regime_is_the_preset_with_larger_tests() -> None:
    clean, preset = config_of("clean"), load_config("pocket")
    assert clean.prompts.pool == preset.prompts.pool
    assert clean.prompts.validation == preset.prompts.validation
    for section in ("model", "verifiers", "rollouts", "influence", "selection"):
        assert getattr(clean, section) == getattr(preset, section)
    assert clean.targeted == list(TARGETS)


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_has_the_same_sizes(regime: str) -> None:
    sets = sets_of(regime)
    assert len(sets.pool) == 2100
    assert {name: skills(prompts) for name, prompts in sets.validation.items()} == {
        name: {name: 60} for name in TARGETS
    }
    assert {name: skills(sets.test[name]) for name in TARGETS} == {
        name: {name: 2000} for name in TARGETS
    }
    assert skills(sets.test["others"]) == dict.fromkeys(OTHERS, 60)
    assert sets.notes.lines() == []


@pytest.mark.parametrize("regime", REGIMES)
def test_no_prompt_stands_in_two_sets(regime: str) -> None:
    contents_of = {
        name: {p.content for p in prompts} for name, prompts in sets_of(regime).named().items()
    }
    assert len(contents_of) == 6
    for left, right in combinations(contents_of, 2):
        assert not contents_of[left] & contents_of[right], (left, right)
    for name, contents in contents_of.items():
        assert {split_of(content) for content in contents} == {name.split()[0]}


@pytest.mark.parametrize("regime", [r for r in REGIMES if r != "noisy_answers"])
def test_outside_the_noisy_answers_every_answer_is_right(regime: str) -> None:
    prompts = [p for each in sets_of(regime).named().values() for p in each]
    assert all(p.answer == right_answer(p) for p in prompts)


@pytest.mark.parametrize("regime", ["clean", "noisy_answers", "noisy_verdicts", "shifted"])
def test_skills_share_the_pool_equally(regime: str) -> None:
    assert skills(sets_of(regime).pool) == dict.fromkeys(SKILLS, 175)


def test_imbalanced_targets_are_three_percent_of_the_pool() -> None:
    counts = skills(sets_of("imbalanced").pool)
    assert {counts[name] for name in TARGETS} == {32}
    assert {counts[name] for name in OTHERS} == {203, 204}
    assert round(sum(counts[name] for name in TARGETS) / counts.total(), 2) == 0.03


def test_low_utility_targets_are_a_fifth_and_the_rest_teaches_them_nothing() -> None:
    counts = skills(sets_of("low_utility").pool)
    rest = dict.fromkeys(("max", "compare", "subtract", "modulo", "multiply", "count"), 280)
    assert counts == {"sort": 210, "shift": 210, **rest}


def test_shifted_targets_are_longer_in_the_pool_than_where_they_are_judged() -> None:
    sets = sets_of("shifted")
    for name, longest in LONGEST.items():
        pool = {p.extra["level"] for p in sets.pool if p.extra["skill"] == name}
        levels = {level.name for level in SKILLS[name].levels}
        assert pool == {longest}
        assert {p.extra["level"] for p in sets.validation[name]} == levels - {longest}
        assert {p.extra["level"] for p in sets.test[name]} == levels - {longest}


def test_thirty_percent_of_the_noisy_answers_are_wrong_in_every_skill() -> None:
    pool = sets_of("noisy_answers").pool
    wrong = [p for p in pool if p.answer != right_answer(p)]
    assert len(wrong) / len(pool) == pytest.approx(0.3, abs=0.005)
    assert [p for p in pool if p.extra["wrong"]] == wrong
    assert set(skills(wrong).values()) == {52, 53}


def test_the_noisy_answers_belong_to_the_clean_pool() -> None:
    def asked(pool: list[Prompt]) -> list[tuple[object, ...]]:
        return [
            (p.prompt_id, p.content, p.source, p.extra["skill"], p.extra["level"]) for p in pool
        ]

    noisy = sets_of("noisy_answers")
    assert (
        asked(noisy.pool) == asked(sets_of("clean").pool) == asked(pool_of(config_of("clean"), 0))
    )
    assert noisy.heldout_sets() == sets_of("clean").heldout_sets()


def test_noisy_verdicts_are_wrong_on_the_pool_alone() -> None:
    sets = sets_of("noisy_verdicts")
    with Judge(config_of("noisy_verdicts").verifiers, FOLDER) as judge:

        def accepted(prompts: list[Prompt]) -> float:
            verdicts = judge.judge([(p, p.answer) for p in prompts])
            return sum(verdict.reward for verdict in verdicts) / len(prompts)

        assert accepted(sets.pool) == pytest.approx(1 - FLIP_SHARE, abs=0.02)
        assert [accepted(prompts[:300]) for prompts in sets.heldout_sets()] == [1.0] * 5


def test_the_language_model_has_a_large_pool_with_few_prompts_of_its_targets() -> None:
    config, sets = config_of(APART), sets_of(APART)
    assert len(sets.pool) >= 1500
    assert config.targeted == ["chain_sum", "number_sequence"]
    share = sum(p.source in config.targeted for p in sets.pool) / len(sets.pool)
    assert 0.2 < share < 0.25
    others = [prompts for name, prompts in sets.named().items() if name != "pool"]
    assert not {p.content for p in sets.pool} & {p.content for prompts in others for p in prompts}
    assert config.rollouts.max_new_tokens <= 48
    assert {"full", "random", "cropi"} < set(config.compare.strategies)
