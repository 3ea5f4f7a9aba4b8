"""The suite `chain`: worked chains, shared facts, a user's grader; see `test_suites.py` too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from chain.corpus import slip
from chain.grader import FLIP_SHARE, flipped, last_part
from chain.tasks import CHAIN
from cropi.config import RunConfig, load_config

FOLDER = Path(__file__).parents[2] / "benchmarks" / "chain"
REGIMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SKILLS = CHAIN.skills
SAMPLE = {name: CHAIN.rows("pool", name)[:200] for name in SKILLS}


def facts_of(skill: str) -> set[str]:
    """The kinds and names of the facts that a skill's sampled chains are made of."""
    written: set[str] = set()

    def write(kind: str, fact: str, right: str) -> str:
        written.add(f"{kind} {fact}")
        return right

    for row in SAMPLE[skill]:
        SKILLS[skill].chain(row["prompt"], write)
    return {fact for fact in written if not fact.startswith("semicolon")}


@pytest.mark.parametrize(
    ("prompt", "chain"),
    [
        ("sum 4*9+7*2:", "36+14;50"),
        ("dif 9*8-30:", "72;42"),
        ("buy", "six k four: 24;24"),
        ("sup 4*9+7*2:", "9,7;9"),
        ("hop 7:485:", "7>1>9>4;4"),
        ("day", "k six four: 6>0;0"),
        ("hip 7:485:", "<><;2"),
        ("rot 1:bah:", "cba;abc"),
        ("srt 5283:", "2358;82"),
        ("cnt a:abcabb:", "a:aa;2"),
    ],
)
def test_chains_by_hand(prompt: str, chain: str) -> None:
    skill = prompt.split(" ")[0]
    if skill in ("buy", "day"):  # their prompts do not begin with the skill
        prompt, chain = chain.rsplit(" ", 1)
    assert SKILLS[skill].solution(prompt) == chain


def test_skills_that_help_share_facts_and_skills_that_look_alike_do_not() -> None:
    for other, shares in [("buy", True), ("dif", True), ("sup", False), ("hop", False)]:
        assert bool(facts_of("sum") & facts_of(other)) is shares, other
    for other, shares in [("day", True), ("hip", False), ("srt", False)]:
        assert bool(facts_of("hop") & facts_of(other)) is shares, other
    for name in ("rot", "srt", "cnt"):
        assert not any(facts_of(name) & facts_of(other) for other in SKILLS if other != name)


def test_a_skill_fails_in_several_ways() -> None:
    kinds = {fact.split(" ")[0] for fact in facts_of("sum")}
    assert kinds == {"times", "plus", "carry"}
    assert slip("times", "36") == "37"
    assert slip("plus", "50") == "51"
    assert slip("carry", "50") == "40"
    assert slip("semicolon", ";") == ","
    assert slip("order", "<") == ">"


def test_a_slip_is_carried_on_so_that_the_chain_is_consistent() -> None:
    def write(kind: str, fact: str, right: str) -> str:
        return "37" if fact == "4*9" else right

    assert SKILLS["sum"].chain("sum 4*9+7*2:", write) == "37+14;51"


def test_the_grader_reads_what_follows_the_last_semicolon() -> None:
    chains = ["36+14;50", "50", "36+14,50", "1;2;50", "36+14;51", ""]
    assert last_part(chains, ["50"] * 6) == [1, 0, 0, 1, 0, 0]


def test_verdicts_are_flipped_on_the_pool_alone_and_always_the_same() -> None:
    pool = [row for sample in SAMPLE.values() for row in sample]
    prompts, answers = [r["prompt"] for r in pool], [r["answer"] for r in pool]
    right = [f";{answer}" for answer in answers]
    rewards = flipped(prompts, right, answers)
    assert rewards == flipped(prompts, right, answers)
    assert 1 - sum(rewards) / len(rewards) == pytest.approx(FLIP_SHARE, abs=0.04)
    tests = [row for name in SKILLS for row in CHAIN.rows("test", name)[:50]]
    judged = flipped([r["prompt"] for r in tests], [f";{r['answer']}" for r in tests],
                     [r["answer"] for r in tests])  # fmt: skip
    assert set(judged) == {1.0}


# The regimes


def config_of(regime: str) -> RunConfig:
    return load_config(str(FOLDER / f"{regime}.yaml"))


def pool_of(config: RunConfig) -> Counter[str]:
    """How many prompts of each skill the pool takes."""
    return Counter({Path(str(s.path)).stem: s.limit or 0 for s in config.prompts.pool})


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_differ_from_the_clean_one_in_what_they_are_named_for(regime: str) -> None:
    config, clean = (config_of(n).model_dump(exclude={"compare"}) for n in (regime, "clean"))
    changed = {key for key, value in config.items() if value != clean[key]}
    changes = {"clean": set(), "noisy_verdicts": {"verifiers"}, "other_rate": {"training"}}
    assert changed == changes.get(regime, {"prompts"}) | ({"name"} if regime != "clean" else set())
    assert config["name"] == f"chain_{regime}"


def test_pools_hold_the_shares_that_their_regimes_are_about() -> None:
    pools = {regime: pool_of(config_of(regime)) for regime in REGIMES}
    assert all(2_900 <= pool.total() <= 3_000 for pool in pools.values())
    assert pools["imbalanced"]["sum"] + pools["imbalanced"]["hop"] < 0.03 * 3_000
    assert not {"dif", "buy", "day"} & set(pools["low_utility"])
    assert {s.source for s in config_of("unlabelled").prompts.pool} == {"chain"}
    assert pools["unlabelled"] == pools["clean"]
