"""The interface of a selection strategy: what it may look at, and what that costs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cropi.errors import InputError
from cropi.influence.settings import Metric
from cropi.plugin_calls import calling
from cropi.plugins import find_plugin
from cropi.rollouts.statistics import GROUP_SIZE, PassHistory, RolloutStatistics
from cropi.schema import InfluenceEstimate, Selection
from cropi.selection.settings import StrategyChoice
from cropi.short_repr import ShortRepr
from cropi.text import plural, shown

Scoring = Literal["stage", "once", "never"]
Direction = Literal["sets", "mean", "pool"]
POOL_DIRECTION = "pool"
"""The name, among the scores of validation sets, of those with the pool's own direction."""


@dataclass(frozen=True, repr=False)
class SelectionContext(ShortRepr):
    """What a strategy sees before a stage.

    `statistics` describes the pool's rollouts, one entry per prompt; `count` is how many to choose
    and `seed` the stage's own. `estimate` is the influence under the current policy, if the
    strategy asked for it, and `earlier` the estimates of the stages before, oldest first. `sources`
    names each pool prompt's source, `target_sources` those of the validation prompts.
    `hidden_states` [L, P, F] are those of the policy at the pool's prompts, and `history` is how
    often they passed in every round of sampling so far, if the strategy asked. `current` [P] are
    pass rates under the stage's own policy, if it asked for those. `visits` is how many prompts the
    stage's steps read, each visit counted; None: unknown. `group_size` is how many responses a step
    samples to a prompt.
    """

    statistics: RolloutStatistics
    count: int
    stage: int = 0
    seed: int = 0
    visits: int | None = None
    group_size: int = GROUP_SIZE
    estimate: InfluenceEstimate | None = None
    earlier: Sequence[InfluenceEstimate] = ()
    sources: Sequence[str] = ()
    target_sources: frozenset[str] = frozenset()
    hidden_states: NDArray[np.floating] | None = None
    history: PassHistory | None = None
    current: NDArray[np.float64] | None = None

    @property
    def prompt_ids(self) -> list[str]:
        """The whole pool, in its order."""
        return self.statistics.prompt_ids

    @property
    def scored(self) -> InfluenceEstimate:
        """The estimate of the prompts that have a score."""
        assert self.estimate is not None, "the strategy needs scores and was given none"
        return self.estimate.scored()


class Strategy(Protocol):
    """Chooses prompts.

    `scoring` says when influence is needed: before every stage, once (under the first policy,
    the same scores at every stage), or never. A strategy may also have the attributes of `Needs`;
    those that it lacks have the defaults given there.
    """

    scoring: Scoring

    def select(self, context: SelectionContext) -> Selection:
        """Return at most `context.count` prompts (the full strategy: all), best first."""


class SamplingStrategy(Protocol):
    """A strategy that has only a part of the pool rolled out (`Needs.sample`)."""

    def enough(self, context: SelectionContext) -> bool:
        """Whether the scores so far tell enough of the prompts without one."""


@dataclass(frozen=True)
class Needs:
    """What a strategy needs, which is also what it has to pay for.

    `rollouts`: whether it looks at the pool's rollouts at all. `direction`: what scores compare a
    prompt with: every validation set, the mean over all validation prompts, or the pool's own mean
    unit gradient. `metric`: how scores compare; None: as the settings say. `fresh`: every stage
    has rollouts of its own policy. `dynamic_sampling`: training replaces groups whose rewards are
    all equal. `earlier`: it looks at the estimates of earlier stages. `target_sources`: it looks at
    the sources of the validation prompts. `hidden_states`: it looks at those of the policy at the
    pool's prompts. `history`: it looks at the rewards of all rollouts so far, training's included.
    `current`: it looks at the pass rates under the stage's own policy, which stored rollouts give.
    `sample`: how many prompts, drawn at random, are rolled out and scored under the first policy
    before its `enough` is asked whether that tells enough of the others; until it does, they are
    doubled, up to `most`. 0: the whole pool is rolled out.
    """

    scoring: Scoring
    rollouts: bool = True
    direction: Direction = "sets"
    metric: Metric | None = None
    fresh: bool = False
    dynamic_sampling: bool = False
    earlier: bool = False
    target_sources: bool = False
    hidden_states: bool = False
    history: bool = False
    current: bool = False
    sample: int = 0
    most: int | None = None

    @property
    def whole_pool(self) -> bool:
        """Whether it needs rollouts of every prompt of the pool."""
        return self.rollouts and not self.sample

    @property
    def validation(self) -> bool:
        """Whether it needs rollouts of the validation sets."""
        return self.scoring != "never" and self.direction != "pool"

    @property
    def validation_sets(self) -> bool:
        """Whether there have to be validation sets at all."""
        return self.validation or self.target_sources


def needs_of(strategy: Strategy) -> Needs:
    """The attributes of `Needs` that `strategy` has, and the defaults of the others."""
    names = [each.name for each in fields(Needs)]
    return Needs(**{name: getattr(strategy, name) for name in names if hasattr(strategy, name)})


def find_strategy(choice: StrategyChoice | str) -> Strategy:
    """Return the chosen strategy, with its settings; a name alone means the defaults.

    Raises InputError if there is none of that name, or what is there is not a strategy.
    """
    if isinstance(choice, str):
        choice = StrategyChoice.of(choice)
    target = find_plugin("strategy", choice.name)
    strategy: Any = choice.build() if isinstance(target, type) else target
    with calling("strategy", choice.name, "reading its attributes"):
        _require_strategy(strategy, choice.name)
        _require_needs(strategy, choice.name)
    return strategy  # type: ignore[no-any-return]


def _require_strategy(strategy: Any, name: str) -> None:
    """Raise InputError for an object without what every strategy has."""
    if not callable(getattr(strategy, "select", None)) or not hasattr(strategy, "scoring"):
        raise InputError(
            f"strategy {name!r} is not a strategy; it needs select(context) and a scoring "
            "attribute of 'stage', 'once' or 'never'"
        )
    try:
        inspect.signature(strategy.select).bind(None)
    except TypeError as error:
        raise InputError(
            f"strategy {name!r}: select(context) cannot be called: {error}; it must take one "
            "argument, the context"
        ) from None


ALLOWED: dict[str, tuple[Any, ...]] = {
    "scoring": get_args(Scoring),
    "direction": get_args(Direction),
    "metric": (None, *get_args(Metric)),
    **{each.name: (False, True) for each in fields(Needs) if isinstance(each.default, bool)},
}
"""Values of a strategy's attributes."""
RENAMED_NEEDS = {"features": "hidden_states"}
"""Earlier names of attributes."""


def _require_needs(strategy: Any, name: str) -> None:
    """Raise InputError if a strategy's attributes have no meaning, or contradict each other."""
    needs = needs_of(strategy)
    for attribute, allowed in ALLOWED.items():
        value = getattr(needs, attribute)
        if not any(value is each or (isinstance(each, str) and value == each) for each in allowed):
            raise InputError(
                f"strategy {name!r} has {attribute} = {shown(value, 60)}; allowed: "
                f"{', '.join(map(str, allowed))}"
            )
    _require_no_near_name(strategy, name)
    for attribute, least in (("sample", 0), ("most", 1)):
        number = getattr(needs, attribute)
        if number is not None and (type(number) is not int or number < least):
            raise InputError(
                f"strategy {name!r} has {attribute} = {shown(number)}, which counts prompts; give "
                f"a whole number from {least} on"
            )
    if needs.sample and not callable(getattr(strategy, "enough", None)):
        raise InputError(
            f"strategy {name!r} has sample = {needs.sample} and no enough(context), which says "
            "whether the prompts scored so far tell enough of the others; add it, or leave sample "
            "out, and the whole pool is rolled out"
        )


def _require_no_near_name(strategy: Any, name: str) -> None:
    """Raise InputError for an attribute that would be one of `Needs` if it were spelt as that is.

    It would have no effect. Values that such an attribute could not have are the strategy's alone.
    """
    kinds = {each.name: type(each.default) for each in fields(Needs)}
    kinds |= {"scoring": str, "metric": str, "most": int}
    for attribute in dir(strategy):
        near = difflib.get_close_matches(attribute, kinds, n=1, cutoff=0.8)
        meant = RENAMED_NEEDS.get(attribute, near[0] if near else attribute)
        if attribute in kinds or meant == attribute or attribute.startswith("_"):
            continue
        if type(value := getattr(strategy, attribute, None)) is kinds[meant]:
            raise InputError(
                f"strategy {name!r} has {attribute} = {shown(value, 60)}, which nothing reads; it "
                f"is called {meant} here: rename it, or give it another name if it is your own"
            )


def selection_size(ratio: float, pool_size: int) -> int:
    """n = max(1, floor(ratio * |D|)), |D| the whole pool (docs/method.md).

    The tiny slack keeps 0.29 * 100 from becoming 28 through binary rounding.
    """
    return max(1, int(ratio * pool_size + 1e-9))


class NothingSelectedError(InputError):
    """No prompt of the pool qualifies."""


def require_not_empty(selection: Selection, context: SelectionContext, who: str) -> None:
    """Raise InputError if nothing was selected, with what the pool lacks."""
    if not selection.prompt_ids:
        raise NothingSelectedError(
            f"{who} selected no prompt, because none of the pool qualifies{_lacking(context)}: add "
            "prompts, sample more responses, or choose another strategy"
        )


def _lacking(context: SelectionContext) -> str:
    """Why prompts have no score, or no pass rate; empty where they have."""
    unjudged = int(np.isnan(context.statistics.pass_rates).sum())
    reasons = {"no usable response": unjudged} if unjudged else {}
    if context.estimate is not None:
        reasons = context.estimate.skipped or reasons
    counts = "; ".join(f"{plural(count, 'prompt')}: {reason}" for reason, count in reasons.items())
    return f" ({counts})" if counts else ""


def top_by_score(
    score: ArrayLike, tie_break: Sequence[str] | NDArray[np.int64], count: int | None = None
) -> NDArray[np.int64]:
    """Indices of the `count` highest scores (None: all), best first; equal ones by `tie_break`.

    `tie_break` (ascending) is the prompts' ids, or a random order.
    """
    positions = (
        tie_break if isinstance(tie_break, np.ndarray) else alphabetical_positions(tie_break)
    )
    return np.lexsort((positions, -np.asarray(score, dtype=np.float64)))[:count]


def select_top(
    context: SelectionContext,
    score: NDArray[np.float64],
    allowed: NDArray[np.bool_] | None = None,
) -> Selection:
    """The prompts of highest score [P], of those allowed; ties in random order."""
    draw = np.random.default_rng(context.seed).permutation(len(context.prompt_ids))
    order = top_by_score(score, draw)
    chosen = (order if allowed is None else order[allowed[order]])[: context.count]
    notes = shortfall(len(chosen), context.count, "prompts qualify")
    return Selection([context.prompt_ids[i] for i in chosen], score[chosen], notes=notes)


def history_of(context: SelectionContext, strategy: str) -> PassHistory:
    """The pass rates of all rounds so far. Raises InputError if rewards are not passes."""
    history = context.history
    assert history is not None, "the strategy needs a history and was given none"
    require_shares(history.passes, history.responses, strategy)
    return replace(history, passes=np.clip(history.passes, 0, history.responses))


def require_shares(
    sums: NDArray[np.float64], counts: NDArray[np.int64] | int, strategy: str
) -> None:
    """Raise InputError unless sums of rewards lie between 0 and their counts."""
    slack = 1e-6 * np.asarray(counts)
    if (sums < -slack).any() or (sums > counts + slack).any():
        raise InputError(
            f"strategy {strategy} reads rewards as shares of a pass, from 0 to 1, and some are "
            "beyond; set verifiers.threshold to the reward at which a response passes"
        )


def alphabetical_positions(prompt_ids: Sequence[str]) -> NDArray[np.int64]:
    """The position of each id in alphabetical order.

    NumPy's own texts would lose a NUL at the end of an id, and all be as long as the longest.
    """
    positions = np.empty(len(prompt_ids), dtype=np.int64)
    positions[sorted(range(len(prompt_ids)), key=prompt_ids.__getitem__)] = np.arange(
        len(prompt_ids)
    )
    return positions


def shortfall(available: int, wanted: int, what: str) -> list[str]:
    """Return a note if there are fewer prompts than wanted."""
    if available >= wanted:
        return []
    return [f"only {available} of the wanted {wanted} {what}; all were taken"]
