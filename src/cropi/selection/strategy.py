"""The interface of a selection strategy, and what it may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.plugins import find_plugin
from cropi.schema import ScoreTable, Selection
from cropi.selection.settings import StrategyChoice

Scoring = Literal["stage", "once", "never"]
Direction = Literal["sets", "mean", "pool"]


@dataclass(frozen=True)
class SelectionContext:
    """What a strategy sees before a stage.

    `prompt_ids` is the whole pool; `pass_rate` and `variance` float64 [n] of the rewards and
    `informative` bool [n] are aligned with it. `count` is how many to choose, `scores` the
    influence under the current policy where the strategy asked for it. `seed` is the stage's.
    `earlier` are the scores of the stages before, oldest first, where the strategy asked for them.
    `sources` names each prompt's source, `target_sources` those of the validation prompts.
    """

    prompt_ids: Sequence[str]
    pass_rate: NDArray[np.float64]
    variance: NDArray[np.float64]
    informative: NDArray[np.bool_]
    count: int
    stage: int = 0
    seed: int = 0
    scores: ScoreTable | None = None
    earlier: Sequence[ScoreTable] = ()
    sources: Sequence[str] = ()
    target_sources: frozenset[str] = frozenset()


class Strategy(Protocol):
    """Chooses prompts.

    `scoring` says when influence is needed: before every stage, once (under the first policy,
    the same scores at every stage), or never. A strategy may also have the attributes of `Needs`;
    those that it lacks have the defaults given there.
    """

    scoring: Scoring

    def select(self, context: SelectionContext) -> Selection:
        """Return at most `context.count` prompts (the full strategy: all), best first."""


@dataclass(frozen=True)
class Needs:
    """What a strategy lives on, which is also what it has to pay for.

    `rollouts`: whether it looks at the pool's rollouts at all. `direction`: what scores compare a
    prompt with: every validation set, the mean over all validation prompts, or the pool's own
    mean unit gradient. `fresh`: every stage has rollouts of its own policy. `dynamic_sampling`:
    training replaces groups whose rewards are all equal. `earlier`: it looks at the scores of
    earlier stages. `target_sources`: it looks at the sources of the validation prompts.
    """

    scoring: Scoring
    rollouts: bool = True
    direction: Direction = "sets"
    fresh: bool = False
    dynamic_sampling: bool = False
    earlier: bool = False
    target_sources: bool = False

    @property
    def validation(self) -> bool:
        """Whether it needs rollouts of the validation sets."""
        return self.scoring != "never" and self.direction != "pool"

    @property
    def validation_sets(self) -> bool:
        """Whether there have to be validation sets at all."""
        return self.validation or self.target_sources


def find_strategy(choice: StrategyChoice | str) -> Strategy:
    """Return the chosen strategy, with its settings; a name alone means the defaults.

    Raises InputError if there is none of that name, or what is there is not a strategy.
    """
    if isinstance(choice, str):
        choice = StrategyChoice.of(choice)
    target = find_plugin("strategy", choice.name)
    strategy = choice.build() if isinstance(target, type) else target
    if not callable(getattr(strategy, "select", None)) or not hasattr(strategy, "scoring"):
        raise InputError(
            f"strategy {choice.name!r} is not a strategy; it needs select(context) and a scoring "
            "attribute of 'stage', 'once' or 'never'"
        )
    return strategy  # type: ignore[no-any-return]


def needs_of(strategy: Strategy) -> Needs:
    """What `strategy` says it needs."""
    told = {f.name: getattr(strategy, f.name) for f in fields(Needs) if hasattr(strategy, f.name)}
    return Needs(**told)


def selection_size(ratio: float, pool_size: int) -> int:
    """n = max(1, floor(ratio * |D|)), |D| the whole pool (docs/method.md).

    The tiny slack keeps 0.1 * 5160 from becoming 515 through binary rounding.
    """
    return max(1, int(ratio * pool_size + 1e-9))


def require_not_empty(selection: Selection, who: str) -> None:
    """Raise InputError if nothing was selected."""
    if not selection.prompt_ids:
        raise InputError(
            f"{who} selected no prompt at all; the pool has none that qualifies: add prompts, "
            "sample more responses, or choose another strategy"
        )


def top_by_score(
    context: SelectionContext, score: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> Selection:
    """The allowed prompts of highest score; equal scores in an order drawn from the seed."""
    draw = np.random.default_rng(context.seed).permutation(len(context.prompt_ids))
    order = np.lexsort((draw, -score))
    chosen = order[allowed[order]][: context.count]
    notes = shortfall(len(chosen), context.count, "prompts qualify")
    return Selection([context.prompt_ids[i] for i in chosen], score[chosen], notes=notes)


def shortfall(found: int, wanted: int, what: str) -> list[str]:
    """A note where fewer prompts were to be had than wanted."""
    return [f"only {found} of the wanted {wanted} {what}; all were taken"] if found < wanted else []
