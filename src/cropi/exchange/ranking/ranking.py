"""The pool of a log, ranked: numbers of each prompt, what is chosen, and why the others are not.

Without a policy a prompt's rank is decided by strategies that look at rewards alone; with one, by
its influence. Both go through `cropi.selection.select`, as the stages of a run do. Torch-free.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cropi.errors import InputError
from cropi.exchange.exports import random_control
from cropi.exchange.imports.pairing import Pairing
from cropi.exchange.imports.rollout_folder import RolloutLog
from cropi.exchange.ranking.prompt_history import (
    PassRule,
    PromptHistory,
    group_notes,
    newest_group_statistics,
    pass_history_by_visit,
    pass_rule,
    prompt_histories,
)
from cropi.exchange.ranking.suspicion import Suspicion, find_suspicion
from cropi.rollouts.statistics import RolloutStatistics, uninformative_kind
from cropi.schema import LEFT_OUT, InfluenceEstimate, Prompt, Selection
from cropi.selection import NothingSelectedError, select, selection_size
from cropi.selection.settings import SelectionConfig
from cropi.text import plural

if TYPE_CHECKING:
    from cropi.verifiers import Judge

CHOSEN = "selected"
UNSEEN = "no response in the log"
LOWER = "ranked lower"
TOOK_ALL = (
    "what is exported is the whole pool; to choose from it, give --like more prompts or responses, "
    "or rank by rewards alone with --no-gradients"
)
NOTHING_TO_SELECT = (
    "nothing to select: no prompt has both better and worse responses in its newest group"
)


@dataclass
class LoggedPool:
    """A log's responses by the prompts of a pool [P], and what they say about each.

    `history` and `suspicions` have an entry per prompt: None where there is nothing to say.
    """

    log: RolloutLog
    pairing: Pairing
    rule: PassRule
    history: list[PromptHistory | None]
    suspicions: list[Suspicion | None]
    statistics: RolloutStatistics
    notes: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[Prompt]:
        """The pool, in its order."""
        return self.pairing.pool


def judge_log(log: RolloutLog, pairing: Pairing, judge: Judge) -> bool:
    """Judge a log that has no reward at all by the answers of its prompts; False if it has one.

    Rewards of the log and of a verifier are never mixed: they may mean different things. Raises
    InputError if the answers cannot be read.
    """
    if any(response.status == "ok" for response in log.responses):
        return False
    numbers = [n for n, index in enumerate(pairing.indices) if index >= 0]
    numbers.sort(key=lambda n: pairing.indices[n])
    asked = [pairing.pool[index] for index in sorted({pairing.indices[n] for n in numbers})]
    if any(not prompt.answer for prompt in asked):
        raise InputError(
            f"{log.place} has no rewards, and some of its prompts have no answer to judge by; give "
            "the rows of your data, with their answers, as --prompts"
        )
    judge.readable(asked)  # raises the error for those that cannot be read
    items = [(pairing.pool[pairing.indices[n]], log.responses[n].text) for n in numbers]
    for number, verdict in zip(numbers, judge.judge(items), strict=True):
        response = log.responses[number]
        response.status = verdict.status
        response.reward = verdict.reward if verdict.status == "ok" else math.nan
    return True


def logged_pool(log: RolloutLog, pairing: Pairing, pass_at: float | None) -> LoggedPool:
    """A log with its pool, and statistics of each prompt in it.

    Responses of evaluations are left out and counted. Raises InputError if the rewards are no pass
    rates, or nothing is left.
    """
    indices, evaluated = _training_indices(log, pairing.indices)
    in_pool = [r for r, index in zip(log.responses, indices, strict=True) if index >= 0]
    judged = any(response.status == "ok" for response in in_pool)
    why = "" if judged or not log.notes else f" ({'; '.join(log.notes)})"
    rewards = [response.reward for response in in_pool]
    rule = pass_rule(rewards, pass_at, f"{log.place}{why}", log.summed)
    history = prompt_histories(log.responses, indices, len(pairing.pool), rule)
    suspicions = [
        find_suspicion(prompt, seen, log.responses, rule) if seen else None
        for prompt, seen in zip(pairing.pool, history, strict=True)
    ]
    notes = [*log.notes, *pairing.notes, *([rule.note] if rule.note else [])]
    if log.summed:
        notes.append(f"rewards are the sum of {', '.join(log.summed)}; --reward picks one")
    if evaluated:
        notes.append(f"{plural(evaluated, 'response')} of evaluations, not of the pool, left out")
    notes += group_notes(history, in_pool)
    ids = [prompt.prompt_id for prompt in pairing.pool]
    statistics = newest_group_statistics(ids, history, log.responses)
    return LoggedPool(log, pairing, rule, history, suspicions, statistics, notes)


def _training_indices(log: RolloutLog, indices: Sequence[int]) -> tuple[list[int], int]:
    """Each response's index into the pool, -1 for those of evaluations, and how many those are.

    A log of evaluations alone is what the user means: none is left out.
    """
    is_training = [response.role == "train" for response in log.responses]
    if not any(is_training):
        return list(indices), 0
    in_training = [index if used else -1 for index, used in zip(indices, is_training, strict=True)]
    return in_training, is_training.count(False)


@dataclass
class MeasuredPool:
    """What a policy adds to a logged pool, where the strategy looks at it.

    `estimate` is the influence, `hidden_states` [L, P, F] are those of all prompts.
    """

    estimate: InfluenceEstimate | None = None
    hidden_states: NDArray[np.floating] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Ranking:
    """A pool, the prompts to train on, the order of all that could be, and a random control.

    `ranks` holds the rank of each prompt of the pool [P], from 1 (0: none), `reasons` why it is
    selected or not. `estimate` is the influence, where it was measured.
    """

    logged: LoggedPool
    selection: Selection
    ranks: NDArray[np.int64]
    reasons: list[str]
    control: set[str]
    settings: SelectionConfig
    estimate: InfluenceEstimate | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How many prompts there are of each reason."""
        return Counter(self.reasons)

    @property
    def asked(self) -> int:
        """How many prompts the ratio asks for."""
        return selection_size(self.settings.ratio, len(self.reasons))

    @property
    def took_all(self) -> bool:
        """Whether the strategy chose among none: all are selected, and fewer were asked for."""
        return len(self.selection.prompt_ids) == len(self.reasons) > self.asked


def rank(
    logged: LoggedPool,
    settings: SelectionConfig,
    seed: int,
    measured: MeasuredPool | None = None,
) -> Ranking:
    """Select from a pool, and put the rest in the order in which it would be taken.

    Where no prompt qualifies, nothing is selected and a note says so. Raises InputError as `select`
    does for anything else.
    """
    evidence = measured or MeasuredPool()

    def choose(ratio: float) -> Selection:
        return select(
            evidence.estimate,
            settings.model_copy(update={"ratio": ratio}),
            rollouts=logged.statistics,
            sources={prompt.prompt_id: prompt.source for prompt in logged.prompts},
            history=pass_history_by_visit(logged.history, logged.rule),
            hidden_states=evidence.hidden_states,
            seed=seed,
        )

    try:
        chosen, everything = choose(settings.ratio), choose(1.0)
    except NothingSelectedError:
        chosen = everything = Selection([], np.zeros(0), notes=[NOTHING_TO_SELECT])
    order = list(dict.fromkeys([*chosen.prompt_ids, *everything.prompt_ids]))
    rank_of = {prompt_id: rank for rank, prompt_id in enumerate(order, 1)}
    ranks = np.array([rank_of.get(prompt.prompt_id, 0) for prompt in logged.prompts])
    ranking = Ranking(
        logged,
        chosen,
        ranks,
        _reasons(logged, set(chosen.prompt_ids), rank_of, evidence.estimate),
        {p.prompt_id for p in random_control(logged.prompts, len(chosen.prompt_ids), seed)},
        settings,
        evidence.estimate,
        notes=[*logged.notes, *evidence.notes],
    )
    ranking.notes[:0] = [*chosen.notes, *([TOOK_ALL] if ranking.took_all and measured else [])]
    return ranking


def _reasons(
    logged: LoggedPool,
    chosen: set[str],
    rank_of: dict[str, int],
    estimate: InfluenceEstimate | None,
) -> list[str]:
    """Why each prompt of the pool [P] is selected or not."""
    status = dict(zip(estimate.prompt_ids, estimate.status, strict=True)) if estimate else {}

    def reason(prompt_id: str, seen: PromptHistory | None) -> str:
        if prompt_id in chosen:
            return CHOSEN
        if seen is None:
            return UNSEEN
        if status.get(prompt_id) in LEFT_OUT:
            return status[prompt_id]
        return LOWER if prompt_id in rank_of else group_kind(seen, logged.rule)

    pool = zip(logged.prompts, logged.history, strict=True)
    return [reason(prompt.prompt_id, seen) for prompt, seen in pool]


def group_kind(seen: PromptHistory, rule: PassRule) -> str:
    """Whether a prompt's newest group has a gradient, and if not, why."""
    newest = seen.newest
    rates = rule.apply(newest.judged)
    if newest.informative:
        return LOWER
    least, greatest = (float(rates.min()), float(rates.max())) if len(rates) else (0.0, 0.0)
    return uninformative_kind(len(rates), least, greatest)
