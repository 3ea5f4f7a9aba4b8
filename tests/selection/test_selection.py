"""Selection: fusion by hand-made examples, sizes, ties, notes, and the baselines."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.plugins import plugin_names
from cropi.rollouts.statistics import PassHistory, RolloutStatistics
from cropi.schema import (
    EQUAL_REWARDS,
    NOT_SAMPLED,
    TOO_FEW_RESPONSES,
    InfluenceEstimate,
    Selection,
)
from cropi.selection import (
    SelectionContext,
    find_strategy,
    fuse,
    needs_of,
    select,
    selection_size,
)
from cropi.selection.fusion import Ranking
from cropi.selection.settings import SelectionConfig, StrategyChoice
from support.tiny_models import random_group


def table(cosines: dict[str, dict[str, float]]) -> InfluenceEstimate:
    ids = list(next(iter(cosines.values())))
    columns = {n: np.array([c[i] for i in ids]) for n, c in cosines.items()}
    return InfluenceEstimate.from_means(ids, columns)


TWO_SETS = table(
    {
        # ranks in x: a 1, b 2, c 3, d 4, e 5; in y: d 1, b 2, a 3, e 4, c 5
        "x": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.1, "e": 0.0},
        "y": {"a": 0.3, "b": 0.5, "c": 0.0, "d": 0.6, "e": 0.2},
    }
)


def test_fusion_with_constant_0_by_hand() -> None:
    selection = fuse(TWO_SETS, 3)
    # a: 1 + 1/3, d: 1 (fourth in x, out of its top 3), b: 1/2 + 1/2, tie of b and d by id
    assert selection.prompt_ids == ["a", "b", "d"]
    assert selection.scores.tolist() == pytest.approx([4 / 3, 1.0, 1.0])
    assert selection.ranks["x"].tolist() == [1, 2, 0]
    assert selection.ranks["y"].tolist() == [3, 2, 1]
    assert selection.notes == []


def test_fusion_with_constant_60_by_hand() -> None:
    selection = fuse(TWO_SETS, 3, constant=60)
    # b: 1/62 + 1/62 = .032258, a: 1/61 + 1/63 = .032266, d: 1/61 = .016, c: 1/63 = .0159
    assert selection.prompt_ids == ["a", "b", "d"]
    assert selection.scores.tolist() == pytest.approx([1 / 61 + 1 / 63, 2 / 62, 1 / 61])


def test_a_prompt_outside_a_sets_top_n_gets_nothing_from_it() -> None:
    selection = fuse(TWO_SETS, 1, constant=60)
    # Only a (first in x) and d (first in y) are listed; b, good in both, is in neither's top 1.
    assert selection.prompt_ids == ["a"]
    assert selection.scores.tolist() == pytest.approx([1 / 61])


@pytest.mark.parametrize("constant", [0.0, 60.0])
def test_ties_go_by_prompt_id_whatever_the_order_of_rows(constant: float) -> None:
    cosines = dict.fromkeys("dbca", 0.5)
    for ids in itertools.permutations(cosines):
        selection = fuse(table({"x": {i: cosines[i] for i in ids}}), 3, constant)
        assert selection.prompt_ids == ["a", "b", "c"]


def test_equal_sums_of_ranks_tie_exactly_over_three_sets() -> None:
    """(1 + 1/2) + 1/3 and (1/3 + 1) + 1/2 differ in the last bit unless summed alike."""
    orders = {"x": "bca", "y": "abc", "z": "cab"}
    cosines = {n: {i: 1.0 - o.index(i) / 10 for i in "abc"} for n, o in orders.items()}
    selection = fuse(table(cosines), 3)
    assert selection.prompt_ids == ["a", "b", "c"]
    assert len(set(selection.scores.tolist())) == 1


@pytest.mark.parametrize(
    ("ratio", "pool", "count"),
    [
        (0.1, 5160, 516),
        (0.1, 99, 9),
        (0.1, 5, 1),
        (0.1, 0, 1),
        (0.29, 100, 29),
        (1.0, 7, 7),
        (0.001, 10, 1),
        (0.7, 10, 7),
        (0.1, 10**6, 10**5),
    ],
)
def test_the_size_is_the_floor_of_the_whole_pool_and_at_least_one(
    ratio: float, pool: int, count: int
) -> None:
    assert selection_size(ratio, pool) == count


def test_a_shortfall_takes_all_and_is_noted() -> None:
    selection = fuse(TWO_SETS, 9)
    assert sorted(selection.prompt_ids) == list("abcde")
    assert selection.notes == ["only 5 of the wanted 9 prompts are informative; all were taken"]


def test_negative_influence_is_counted() -> None:
    selection = fuse(
        table({"x": {"a": 0.5, "b": -0.1, "c": -0.2}, "y": {"a": -1, "b": -1, "c": 1}}), 3
    )
    assert selection.negative == 1
    (note,) = selection.notes
    assert note == "1 of the 3 selected have negative influence on every set"


def context(**settings: object) -> SelectionContext:
    count = 40
    rate = np.linspace(0, 1, count)
    statistics = RolloutStatistics(
        prompt_ids=[f"p{n:02d}" for n in range(count)],
        pass_rates=rate,
        variances=rate * (1 - rate),
        informative=(rate > 0) & (rate < 1),
        distinct=np.ones(count, np.int64),
        tokens=np.ones(count, np.int64),
        statuses={"ok": np.full(count, 6)},
    )
    values = {
        "statistics": statistics,
        "count": 8,
        "sources": ["near" if n % 4 == 0 else "far" for n in range(count)],
        "target_sources": frozenset({"near"}),
        "current": rate,
        "history": PassHistory(6 * rate[None], np.full((1, count), 6)),
    }
    return SelectionContext(**{**values, **settings})


def places(selection: Selection) -> list[int]:
    return [int(i[1:]) for i in selection.prompt_ids]


@pytest.mark.parametrize("name", plugin_names("strategy"))
def test_every_built_in_strategy_chooses_distinct_prompts_of_the_pool(name: str) -> None:
    ids = context().prompt_ids
    target = "pool" if name == "learnalign" else "v"
    cosines = {target: dict(zip(ids, np.linspace(-1, 1, 40).tolist(), strict=True))}
    given = context(estimate=table(cosines), hidden_states=np.eye(40)[None])
    without = {"noise_floor": 0, "memory": 0} if name == "ranking" else {}
    strategy = find_strategy(StrategyChoice.of(name, **without))
    selection = strategy.select(given)
    assert len(selection.prompt_ids) == {"full": 40, "dapo": 40, "oracle": 10}.get(name, 8)
    assert set(selection.prompt_ids) <= set(ids)
    once, every = ("cropi", "one_shot", "learnalign"), ("ranking", "gradalign")
    expected = "once" if name in once else "stage" if name in every else "never"
    assert strategy.scoring == expected
    assert strategy.select(given).prompt_ids == selection.prompt_ids


def test_full_keeps_the_pools_order_and_ignores_the_count() -> None:
    assert places(find_strategy("full").select(context())) == list(range(40))


def test_random_draws_again_for_each_seed_from_the_whole_pool() -> None:
    draws = [places(find_strategy("random").select(context(seed=s))) for s in range(200)]
    assert draws[0] != draws[1]
    assert set().union(*draws) == set(range(40))


def test_pass_rate_stays_in_its_band_while_it_can() -> None:
    draws = [find_strategy("pass_rate").select(context(seed=s)) for s in range(20)]
    rates = context().statistics.pass_rates[np.unique([places(d) for d in draws])]
    assert rates.min() >= 0.25
    assert rates.max() <= 0.75
    wide = places(find_strategy("pass_rate").select(context(count=30)))
    assert sorted(wide) == list(range(5, 35))


def test_learnability_takes_the_highest_variance_of_informative_prompts() -> None:
    chosen = places(find_strategy("learnability").select(context()))
    assert sorted(chosen) == list(range(16, 24))
    everything = find_strategy("learnability").select(context(count=40))
    assert len(everything.prompt_ids) == 38
    assert everything.notes == ["only 38 of the wanted 40 prompts qualify; all were taken"]


def test_dare_draws_what_is_half_solved_now_and_nothing_that_is_surely_right_or_wrong() -> None:
    current = np.where(np.arange(40) < 10, 0.5, np.where(np.arange(40) < 20, 0.1, 1.0))
    draws = [places(find_strategy("dare").select(context(current=current, seed=s))) for s in (0, 1)]
    assert draws[0] != draws[1]
    assert set(draws[0]) <= set(range(10))
    everything = find_strategy("dare").select(context(current=current, count=40))
    assert sorted(places(everything)) == list(range(20))
    with pytest.raises(InputError, match="strategy dare reads rewards as shares"):
        find_strategy("dare").select(context(current=current * 3))
    rollouts = [random_group(np.random.default_rng(0), "p")]
    settings = SelectionConfig(strategy=StrategyChoice.of("dare"))
    with pytest.raises(InputError, match=r"in Python give current=current_pass_rates"):
        select(None, settings, rollouts=rollouts)


def test_oracle_takes_all_prompts_of_the_target_sources_and_refuses_where_there_are_none() -> None:
    assert places(find_strategy("oracle").select(context())) == list(range(0, 40, 4))
    with pytest.raises(InputError, match="no pool prompt has a source of the validation sets"):
        find_strategy("oracle").select(context(target_sources=frozenset({"elsewhere"})))


def test_gradalign_ranks_by_its_cosine_alone() -> None:
    cosines = dict(zip("abcd", (0.1, 0.9, -0.5, 0.9), strict=True))
    selection = find_strategy("gradalign").select(
        context(estimate=table({"validation": cosines}), count=3)
    )
    assert selection.prompt_ids == ["b", "d", "a"]
    assert selection.negative == 0


def test_learnalign_weighs_alignment_with_learnability() -> None:
    ids = context().prompt_ids
    cosines = dict.fromkeys(ids, 0.5) | {ids[0]: 1.0, ids[10]: 0.9}
    chosen = places(find_strategy("learnalign").select(context(estimate=table({"pool": cosines}))))
    rate = context().statistics.pass_rates
    score = rate * (1 - rate) * np.array([cosines[i] for i in ids])
    assert chosen == np.argsort(-score, kind="stable")[:8].tolist()
    assert chosen[0] == 10


def test_what_a_strategy_needs_decides_what_it_pays_for() -> None:
    needs = {name: needs_of(find_strategy(name)) for name in plugin_names("strategy")}
    assert {n for n, need in needs.items() if not need.rollouts} == {
        "full",
        "random",
        "dapo",
        "oracle",
    }
    assert {n for n, need in needs.items() if need.validation} == {
        "cropi",
        "ranking",
        "one_shot",
        "gradalign",
    }
    assert [n for n, need in needs.items() if need.fresh] == ["gradalign"]
    assert [n for n, need in needs.items() if need.dynamic_sampling] == ["dapo"]


def test_an_unknown_strategy_names_the_allowed_ones_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown strategy 'learnabilty'.*did you mean"):
        find_strategy("learnabilty")
    with pytest.raises(InputError, match=r"allowed: bandit, cropi, dapo.*package\.module:object"):
        find_strategy("zzz")


USERS = """
from typing import Any
from cropi.schema import Selection
from cropi.settings import Section

class LastOnes:
    scoring = "never"

    def select(self, context):
        chosen = list(context.prompt_ids)[-context.count:]
        return Selection(chosen, [1.0] * len(chosen))

class Contradicting(LastOnes):
    class Settings(Section):
        attributes: dict[str, Any]

    def __init__(self, settings):
        self.__dict__.update(settings.attributes)

ready = LastOnes()
not_one = 3
"""


@pytest.mark.parametrize("attribute", ["LastOnes", "ready"])
def test_a_users_strategy_is_found_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    (tmp_path / "my_strategies.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    selection = find_strategy(f"my_strategies:{attribute}").select(context())
    assert places(selection) == list(range(32, 40))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_strategies:nothing", "has no 'nothing'; it has LastOnes"),
        ("my_strategies:not_one", "is not a strategy: it has no method select"),
        ("no_such_module_here:X", "no module named 'no_such_module_here'; install it"),
    ],
)
def test_a_users_strategy_that_cannot_be_used_is_an_error_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    (tmp_path / "my_strategies.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        find_strategy(path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scoring": "stage", "sample": 8}, r"has sample = 8 and no enough\(context\)"),
        ({"sample": -1}, "has sample = -1, which counts prompts; give a whole number from 0 on"),
        ({"sample": 2.5}, "has sample = 2.5, which counts prompts"),
        ({"most": 0}, "has most = 0, .* from 1 on"),
        ({"scoring": "always"}, "has scoring = 'always'; allowed: stage, once, never"),
        ({"direction": "up"}, "has direction = 'up'; allowed: sets, mean, pool"),
        ({"metric": "angle"}, "has metric = 'angle'; allowed: None, cosine"),
    ],
)
def test_a_users_strategy_with_needs_that_contradict_each_other_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, object], message: str
) -> None:
    (tmp_path / "my_strategies.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    choice = StrategyChoice.model_validate(
        {"name": "my_strategies:Contradicting", "attributes": attributes}
    )
    with pytest.raises(InputError, match=message):
        find_strategy(choice)


def test_an_error_inside_a_users_module_keeps_its_own_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_strategy.py").write_text("import math\nmath.no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"AttributeError.*no_such_thing.*\(line 2 of .*bro"):
        find_strategy("broken_strategy:X")


ONE, TWO = np.ones(1), np.ones(2)


@pytest.mark.parametrize(("returned", "message"), [
    (None, "select returned None, a NoneType; it must return"),
    (["a"], r"select returned \['a'\], a list; it must return"),
    (Selection(["a", "a"], TWO), "has the prompt 'a' twice"),
    (Selection(["a", "z"], TWO), "has the prompt 'z', which the pool lacks"),
    (Selection([1], ONE), "has the prompt 1, which is no text"),  # type: ignore[list-item]
    (Selection([["a"]], ONE), r"has the prompt \['a'\], which is no"),  # type: ignore[list-item]
    (Selection(None, ONE), "has prompt_ids None, which is no list"),  # type: ignore[arg-type]
    (Selection(["a"], TWO), r"has scores of shape \(2,\) for 1 prompts"),
    (Selection(["a"], np.ones((1, 1))), r"has scores of shape \(1, 1\)"),
    (Selection(["a"], np.array(["much"])), "has scores .*, which are no numbers"),
    (Selection(["a"], np.array([1j])), "has scores .*, which are no numbers"),
    (Selection(["a"], np.array([np.nan])), "has nan among scores; give finite numbers"),
    (Selection(["a", "b"], np.array([1, -np.inf])), "has -inf among scores"),
    (Selection(["a"], ONE, {"x": np.array([-1])}), r"has -1 among ranks\['x'\]; give whole"),
    (Selection(["a"], ONE, {"x": np.array([2**40])}), r"has 1099511627776 among ranks"),
    (Selection(["a"], ONE, {"x": np.array([1.5])}), r"has ranks\['x'\] .*, which are no"),
    (Selection(["a"], ONE, {"x": np.array([1, 2])}), r"has ranks\['x'\] of shape \(2,\)"),
    (Selection(["a"], ONE, {1: ONE}), "has ranks .*by the validation set"),  # type: ignore
    (Selection(["a"], ONE, negative=-3), "has -3 among negative"),
    (Selection(["a"], ONE, notes="text"), "has notes 'text'; give a list"),  # type: ignore[arg-type]
])  # fmt: skip
def test_a_selection_holds_prompts_of_the_pool_once_with_sound_numbers_of_each(
    monkeypatch: pytest.MonkeyPatch, returned: Any, message: str
) -> None:
    monkeypatch.setattr(Ranking, "select", lambda *_: returned)
    with pytest.raises(InputError, match=f"strategy 'ranking': .*{message}"):
        select(table({"x": {"a": 0.5, "b": 0.9}}))


def test_a_selection_gets_plain_types(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"x": np.array([2, 1], np.uint8)}
    loose: Any = Selection(np.array(["b", "a"]), (2, 1), ranks, np.int64(1), ("so",))  # type: ignore
    monkeypatch.setattr(Ranking, "select", lambda *_: loose)
    selection = select(table({"x": {"a": 0.5, "b": 0.9}}))
    assert (selection.prompt_ids, selection.negative, selection.notes) == (["b", "a"], 1, ["so"])
    assert type(selection.prompt_ids[0]) is str
    assert (selection.scores.dtype, selection.ranks["x"].dtype) == (np.float64, np.int32)


MISBEHAVING = """
import sys
from cropi.schema import Selection

class Base:
    scoring = "never"

    def select(self, context):
        return Selection(context.prompt_ids[:1], [1.0])

class Exits(Base):
    def select(self, context):
        sys.exit(3)

class Raises(Base):
    def select(self, context):
        return {}["missing"]

class ExitsWhenMade(Base):
    def __init__(self):
        exit()

class Unreadable(Base):
    @property
    def scoring(self):
        raise OSError("no such thing")

class Clears(Base):
    def select(self, context):
        context.prompt_ids.clear()
        return Selection(["elsewhere"], [1.0])

class Old(Base):
    features = True

class Misspelt(Base):
    hiden_states = True

class Textual(Base):
    history = "yes"

class Method(Base):
    def history(self): ...

class OfItsOwn(Base):
    samples, features, directions = [1, 2], None, 3
"""


@pytest.fixture
def misbehaving(tmp_path: Path) -> Path:
    file = tmp_path / "misbehaving.py"
    file.write_text(MISBEHAVING)
    return file


@pytest.mark.parametrize(("name", "message"), [
    ("Exits", r"select raised SystemExit: 3 \(line 13 of .*misbehaving.py\); correct it"),
    ("Raises", r"select raised KeyError: 'missing' \(line 17 of .*misbehaving.py\); correct it"),
    ("ExitsWhenMade", r"making it raised SystemExit: None \(line 21 of"),
    ("Unreadable", r"reading its attributes raised OSError: no such thing \(line 26 of"),
    ("Clears", "has the prompt 'elsewhere', which the pool lacks"),
    ("Old", "has features = True, which nothing reads; it is called hidden_states here"),
    ("Misspelt", "has hiden_states = True, which nothing reads; it is called hidden_states"),
    ("Textual", "has history = 'yes'; allowed: False, True"),
    ("Method", "has history = <bound method .*; allowed: False, True"),
])  # fmt: skip
def test_a_users_strategy_that_misbehaves_is_named_with_its_function_and_line(
    misbehaving: Path, name: str, message: str
) -> None:
    rng = np.random.default_rng(0)
    groups = [random_group(rng, "a"), random_group(rng, "b")]
    with pytest.raises(InputError, match=rf"strategy '.*misbehaving.py:{name}'.*{message}"):
        select(
            settings=SelectionConfig(strategy=StrategyChoice.of(f"{misbehaving}:{name}")),
            rollouts=groups,
        )


def test_attributes_of_a_strategys_own_are_left_alone(misbehaving: Path) -> None:
    assert find_strategy(f"{misbehaving}:OfItsOwn").scoring == "never"


def test_a_strategy_whose_select_takes_no_context_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("class Own:\n    scoring = 'never'\n    def select(self): ...\n")
    with pytest.raises(InputError, match=r"select\(context\) cannot be called"):
        find_strategy(f"{file}:Own")


def test_ids_that_end_with_a_nul_are_ids_of_their_own() -> None:
    cosines = {"x": {"a": 0.5, "a\0": 0.5, "b": 0.9}}
    assert fuse(table(cosines), 3).prompt_ids == ["b", "a", "a\0"]


def test_learnalign_refuses_scores_that_are_not_of_the_pool() -> None:
    cosines = dict.fromkeys(context().prompt_ids, 0.1)
    for targets in ({"v": cosines}, {"pool": cosines, "v": cosines}):
        with pytest.raises(InputError, match="pool's own direction"):
            find_strategy("learnalign").select(context(estimate=table(targets)))


def test_prompts_whose_responses_are_no_longer_usable_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    groups = [random_group(rng, name) for name in "abc"]
    settings = SelectionConfig(strategy=StrategyChoice.of("learnalign"), ratio=1.0)
    scores = table({"pool": {"a": 0.9, "b": 0.1, "c": 0.5}})
    for response in groups[0].responses:
        response.reward, response.reward_status = np.nan, "error"
    selection = select(scores, settings, rollouts=groups)
    assert selection.prompt_ids == ["c", "b"]
    assert any("1 prompt with a score, but without a usable" in note for note in selection.notes)
    for group in groups:
        group.responses = []
    with pytest.raises(InputError, match=r"selected no prompt.*\(3 prompts: no usable response\)"):
        select(scores, settings, rollouts=groups)


@pytest.mark.parametrize("name", ["gradalign", "one_shot", "ranking", "learnalign"])
def test_where_no_prompt_has_a_score_the_reason_is_given(name: str) -> None:
    scores = table({"pool": {"a": np.nan, "b": np.nan}})
    scores.status = [TOO_FEW_RESPONSES, EQUAL_REWARDS]
    rng = np.random.default_rng(0)
    reasons = rf"\(1 prompt: {EQUAL_REWARDS}; 1 prompt: {TOO_FEW_RESPONSES}\)"
    with pytest.raises(InputError, match=reasons):
        select(
            scores,
            SelectionConfig(strategy=StrategyChoice.of(name)),
            rollouts=[random_group(rng, "a"), random_group(rng, "b")],
        )


def test_scores_and_rollouts_of_different_pools_are_refused() -> None:
    ours, other = table({"v": {"p0": 0.5, "p1": 0.1}}), table({"v": {"q": 0.5}})
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="2 prompts that the rollouts lack, first 'p0'"):
        select(ours, rollouts=[random_group(rng, "q")])
    with pytest.raises(InputError, match="earlier stage 0 share no prompt"):
        select(ours, earlier=[other])


def test_rollouts_of_a_sampled_pool_are_not_taken_for_those_of_another_pool() -> None:
    sampled_one = table({"v": {"p0": 0.5, "p1": 0.1}})
    sampled_one.status[1] = NOT_SAMPLED
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="first 'p1'; their run never sampled them"):
        select(sampled_one, rollouts=[random_group(rng, "p0")])
