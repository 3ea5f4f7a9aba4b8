"""Statistics of each prompt in a log: how often it was solved, lately and over the whole run.

A *visit* is one time that a trainer sampled a prompt: the group of responses whose rewards were
compared. Over a run a prompt is visited several times, by policies that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.exchange.imports.logged import LoggedResponse
from cropi.rollouts.statistics import PassHistory, RolloutStatistics
from cropi.schema import rewards_differ
from cropi.text import plural

LEAST_COMPARED = 2
"""Judged responses that a group needs for a gradient."""


@dataclass(frozen=True)
class PassRule:
    """How rewards become pass rates: as they are, or by whether they reach `threshold`."""

    threshold: float | None = None
    note: str = ""

    def apply(self, rewards: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards [K] as pass rates, from 0 to 1."""
        values = np.asarray(rewards, dtype=np.float64)
        return values if self.threshold is None else (values >= self.threshold).astype(np.float64)


def pass_rule(
    rewards: Sequence[float], pass_at: float | None, place: str, summed: Sequence[str] = ()
) -> PassRule:
    """The rule for these rewards; `pass_at` is the user's threshold, `summed` their summands.

    Rewards from 0 to 1 are pass rates already. Of two values the higher one passes. Raises
    InputError for any others, because their mean is not a pass rate.
    """
    values = np.unique(np.asarray(rewards, dtype=np.float64))
    values = values[~np.isnan(values)]
    if not len(values):
        raise InputError(
            f"{place} holds no response with a reward; give rollouts that were judged, or judge "
            "them with --verifier, by the log's answers or those of --prompts"
        )
    if pass_at is not None:
        return PassRule(pass_at, _idle_threshold(pass_at, float(values[0]), float(values[-1])))
    if values[0] >= 0 and values[-1] <= 1:
        return PassRule()
    if len(values) == 2:
        return PassRule(
            float(values[1]), f"rewards are {values[0]:zg} and {values[1]:zg}: the higher passes"
        )
    parts = f" (the sum of {', '.join(summed)})" if summed else ""
    raise InputError(
        f"the rewards of {place}{parts} go from {values[0]:zg} to {values[-1]:zg} "
        f"({plural(len(values), 'value')}), and their mean is not a pass rate; say at which "
        "reward a response passes with --pass-at, or name the column that says right or wrong with "
        "--reward"
    )


def _idle_threshold(pass_at: float, lowest: float, highest: float) -> str:
    """A note on a reward to pass at that tells no responses apart; empty for one that does."""
    if lowest < pass_at <= highest:
        return ""
    if pass_at > highest:
        return (
            f"no response passes: the largest reward is {highest:zg}, below --pass-at {pass_at:g}"
        )
    return f"every response passes: the smallest reward is {lowest:zg}, and --pass-at {pass_at:g}"


@dataclass
class Visit:
    """One group of responses of a prompt, as indices into the log."""

    step: int | None
    members: list[int]
    judged: NDArray[np.float64]
    """Rewards [K] of the responses that were judged."""

    @property
    def informative(self) -> bool:
        """Whether the group has a gradient."""
        if len(self.judged) < LEAST_COMPARED:
            return False
        return rewards_differ(float(self.judged.min()), float(self.judged.max()))


@dataclass
class PromptHistory:
    """All visits of a prompt, oldest first. Rates are NaN where nothing was judged."""

    visits: list[Visit]
    raw_pass_rate: float
    current_pass_rate: float
    learnability: float

    @property
    def newest(self) -> Visit:
        """The last visit with a judged response, or the last one."""
        return next((v for v in reversed(self.visits) if len(v.judged)), self.visits[-1])

    @property
    def uninformative_share(self) -> float:
        """The share of the visits with judged responses whose rewards were all equal."""
        judged = [visit for visit in self.visits if len(visit.judged)]
        return float(np.mean([not v.informative for v in judged])) if judged else float("nan")

    @property
    def members(self) -> list[int]:
        """All responses, as indices into the log."""
        return [member for visit in self.visits for member in visit.members]


def prompt_histories(
    responses: Sequence[LoggedResponse], indices: Sequence[int], pool: int, rule: PassRule
) -> list[PromptHistory | None]:
    """The history of each prompt of the pool [P]; None for one without a response."""
    grouped: list[dict[tuple[object, ...], list[int]]] = [{} for _ in range(pool)]
    for number, (response, index) in enumerate(zip(responses, indices, strict=True)):
        if index >= 0:
            key = (response.run, response.step, response.group)
            grouped[index].setdefault(key, []).append(number)
    return [_history(groups, responses, rule) if groups else None for groups in grouped]


def _history(
    groups: dict[tuple[object, ...], list[int]],
    responses: Sequence[LoggedResponse],
    rule: PassRule,
) -> PromptHistory:
    visits = [_visit(members, responses) for members in groups.values()]
    visits.sort(key=lambda visit: -1 if visit.step is None else visit.step)
    everything = rule.apply(np.concatenate([visit.judged for visit in visits]))
    nan = float("nan")
    history = PromptHistory(visits, float(everything.mean()) if len(everything) else nan, nan, nan)
    newest = rule.apply(history.newest.judged)
    if len(newest):
        history.current_pass_rate = float(newest.mean())
        history.learnability = float(newest.var())
    return history


def _visit(members: list[int], responses: Sequence[LoggedResponse]) -> Visit:
    rewards = [responses[m].reward for m in members if responses[m].status == "ok"]
    return Visit(responses[members[0]].step, members, np.array(rewards, dtype=np.float64))


def newest_group_statistics(
    prompt_ids: Sequence[str],
    history: Sequence[PromptHistory | None],
    responses: Sequence[LoggedResponse],
) -> RolloutStatistics:
    """Statistics of each prompt's newest group [P], as strategies read them."""
    nan = float("nan")
    members = [h.newest.members if h else [] for h in history]
    statuses = {
        status: np.array(
            [sum(responses[m].status == status for m in group) for group in members], dtype=np.int64
        )
        for status in ("ok", "timeout", "error")
    }
    return RolloutStatistics(
        prompt_ids=list(prompt_ids),
        pass_rates=np.array([h.current_pass_rate if h else nan for h in history]),
        variances=np.array([h.learnability if h else nan for h in history]),
        informative=np.array([bool(h and h.newest.informative) for h in history], dtype=bool),
        distinct=np.array([len({responses[m].text for m in group}) for group in members]),
        tokens=np.array([sum(_length(responses[m]) for m in group) for group in members]),
        statuses=statuses,
    )


def pass_history_by_visit(history: Sequence[PromptHistory | None], rule: PassRule) -> PassHistory:
    """Passes of each prompt's first visit, its second, and so on: the rounds of a `PassHistory`."""
    rounds = max((len(each.visits) for each in history if each), default=0)
    total = np.zeros((rounds, len(history)))
    counts = np.zeros((rounds, len(history)), dtype=np.int64)
    unequal = np.zeros((rounds, len(history)), dtype=bool)
    for index, each in enumerate(history):
        for number, visit in enumerate(each.visits if each else []):
            total[number, index] = rule.apply(visit.judged).sum()
            counts[number, index] = len(visit.judged)
            unequal[number, index] = visit.informative
    return PassHistory(total, counts, unequal)


def _length(response: LoggedResponse) -> int:
    return 0 if response.tokens is None else len(response.tokens.ids)


def group_notes(
    history: Sequence[PromptHistory | None], responses: Sequence[LoggedResponse]
) -> list[str]:
    """Notes on groups of one response, responses without a reward, several steps and gaps."""
    seen = [h for h in history if h]
    single = sum(len(v.members) < LEAST_COMPARED for h in seen for v in h.visits)
    visits = sum(len(h.visits) for h in seen)
    unjudged = sum(response.status != "ok" for response in responses)
    steps = {response.step for response in responses if response.step is not None}
    notes = []
    if unseen := len(history) - len(seen):
        notes.append(f"{plural(unseen, 'prompt')} of the pool have no response in the log")
    if single:
        notes.append(
            f"{single:,} of {plural(visits, 'group')} have a single response, which cannot be "
            "compared with another: they are dead, whatever the prompt is"
        )
    if unjudged:
        notes.append(f"{plural(unjudged, 'response')} without a reward, left out of all rates")
    if len(steps) > 1:
        notes.append(
            f"responses of {len(steps)} steps ({min(steps)} to {max(steps)}), sampled by policies "
            "that differ: the raw pass rate is over all, the current one is that of a prompt's "
            "newest group"
        )
    return notes
