"""Every generated suite: prompts in disjoint splits, chains and slips that can be written."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from chain.make import RECIPE as CHAIN
from cropi.config import RunConfig, load_config
from cropi.pocket.tasks import SPLIT_SHARES
from puzzles.make import RECIPE as PUZZLES
from suite.corpus import EASY_RATE
from suite.making import Recipe

RECIPES = {recipe.corpus.suite.name: recipe for recipe in (CHAIN, PUZZLES)}
REGIMES = [
    (name, path.stem)
    for name, recipe in RECIPES.items()
    for path in sorted(recipe.folder.parent.glob("*.yaml"))
]
KINDS = [(name, kind) for name, recipe in RECIPES.items() for kind in recipe.corpus.hard_share]


def regimes_of(suite: str) -> list[tuple[str, str]]:
    return [(name, regime) for name, regime in REGIMES if name == suite]


@cache
def config_of(suite: str, regime: str) -> RunConfig:
    return load_config(str(RECIPES[suite].folder.parent / f"{regime}.yaml"))


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@cache
def count_of(suite: str, split: str, skill: str) -> int:
    return len(RECIPES[suite].corpus.suite.rows(split, skill))


def test_prompts_are_distinct_and_splits_disjoint(recipe: Recipe) -> None:
    suite = recipe.corpus.suite
    rows = [
        row for split in SPLIT_SHARES for name in suite.skills for row in suite.rows(split, name)
    ]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    for name in suite.skills:
        assert count_of(suite.name, "pool", name) >= 300
        assert count_of(suite.name, "validation", name) >= 48


def test_every_prompt_and_chain_can_be_written_with_the_vocabulary(recipe: Recipe) -> None:
    suite, corpus = recipe.corpus.suite, recipe.corpus
    write = corpus.slipping(random.Random(0))
    room = min(config_of(*regime).rollouts.max_new_tokens for regime in regimes_of(suite.name))
    for name, skill in suite.skills.items():
        for row in suite.rows("pool", name)[:200]:
            chain = skill.chain(row["prompt"], write)
            assert set(row["prompt"].replace(" ", "Ġ") + chain) <= set(recipe.characters)
            assert len(recipe.token_ids(row["prompt"])) == len(row["prompt"]) <= 24
            assert 1 <= len(chain) < room, "room for the end within max_new_tokens"


def test_an_answer_is_what_follows_the_last_mark_of_the_right_chain(recipe: Recipe) -> None:
    suite = recipe.corpus.suite
    for name, skill in suite.skills.items():
        for row in suite.rows("test", name)[:50]:
            *steps, answer = skill.solution(row["prompt"]).split(suite.mark)
            assert len(steps) <= 1
            assert row["answer"] == answer


@pytest.mark.parametrize(("suite", "kind"), KINDS)
def test_the_share_of_hard_facts_is_the_tables(suite: str, kind: str) -> None:
    corpus = RECIPES[suite].corpus
    rates = [corpus.slip_rate(kind, str(fact)) for fact in range(2_000)]
    hard = [rate for rate in rates if rate != EASY_RATE]
    assert len(hard) / len(rates) == pytest.approx(corpus.hard_share[kind], abs=0.03)
    assert all(0.5 < rate < 0.8 for rate in hard)


def test_the_corpus_is_drawn_by_its_seed_in_the_shares_of_its_mixture() -> None:
    pairs, again, other = (list(PUZZLES.corpus.examples(seed)) for seed in (0, 0, 1))
    assert pairs == again != other
    assert sum(weight for *_, weight in pairs) == pytest.approx(1)
    total = sum(PUZZLES.corpus.mixture.values())
    share = sum(weight for prompt, _, weight in pairs if "%" in prompt)
    assert share == pytest.approx(PUZZLES.corpus.mixture["mod"] / total)


@pytest.mark.parametrize(("suite", "regime"), REGIMES)
def test_every_file_that_a_regime_reads_is_made_and_holds_what_it_takes(
    suite: str, regime: str
) -> None:
    config = config_of(suite, regime)
    assert config.name == f"{suite}_{regime}"
    prompts = config.prompts
    sets = [prompts.pool, *prompts.validation.values(), *prompts.test.values()]
    for source in (each for sources in sets for each in sources):
        made, split, file = Path(str(source.path)).parts
        assert made == "made"
        assert 0 < (source.limit or 0) <= count_of(suite, split, Path(file).stem), source
