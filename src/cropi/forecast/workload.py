"""The work of a run before it starts: tokens by phase.

Tokens and FLOPs are counted as a run counts them itself (`cropi.store.metrics`), so that a forecast
and the run's own costs can be compared. What config and prompts do not determine (`Behaviour`: how
long responses are, which groups have a gradient) is guessed or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cropi.config import RunConfig
from cropi.curriculum.run_context import arms_needing, needs_of_arm
from cropi.curriculum.stage_rollouts import sets_to_refresh
from cropi.forecast.prompt_counts import PromptCounts, SetCount
from cropi.selection import Needs
from cropi.selection.settings import StrategyChoice
from cropi.sketches import FittedSketch, make_sketch
from cropi.store.metrics import flops_of
from cropi.study.costs import SELECTION_PHASES, SHARED
from cropi.training.stage import MAX_SAMPLING_ROUNDS

START_UP = "start-up"
"""The phase before the first: the process begins, and workers that stay."""
GUESSED_LENGTH = 0.5
"""Mean length of a response as a share of the longest one allowed, if nothing was measured."""
GUESSED_SAMPLE = 1024
"""Prompts after which a growing sample of the pool is assumed to be large enough."""
GUESSED_INFORMATIVE = 0.5
"""Share of groups with a gradient, if nothing was measured."""
GUESSED_STALE = 0.5
"""Share of the pool that `curriculum.refresh: stale` is assumed to sample again."""

PLACEHOLDER_SHAPES = {"weight": (64, 64)}
"""Parameter shapes for reading attributes of a sketch that do not depend on the model."""


@dataclass(frozen=True)
class SampledSet:
    """Responses to a kind of set: their mean length in tokens, and the share of informative groups.

    `scored_tokens` go through the model to score one informative prompt, its prompt once.
    `groups` were sampled to know this: none for a guess.
    """

    response_tokens: float
    informative: float
    scored_tokens: float
    groups: int = 0


@dataclass(frozen=True)
class Behaviour:
    """What a policy does with the prompts; `trained_tokens` and `evaluated_tokens` are the mean
    lengths of a response in training and in evaluation. `source` says where these are from."""

    pool: SampledSet
    validation: SampledSet
    trained_tokens: float
    evaluated_tokens: float
    source: str = "guess"


@dataclass(frozen=True)
class Work:
    """What one phase of an arm (SHARED: of all) does in all stages together.

    Tokens as in `CostRow`. `begins` counts how often the phase starts, `starts` how often programs
    are started for it where there are any, `steps` its optimizer steps, and `responses` those that
    are sampled. `payers` are the arms that shared rollouts are made for.
    """

    phase: str
    arm: str
    prompts: float
    generated: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    responses: float = 0.0
    begins: int = 1
    starts: int = 0
    steps: int = 0
    payers: tuple[str, ...] = ()

    @property
    def tokens(self) -> float:
        """Tokens sampled, and tokens run forward with or without backward."""
        return self.generated + self.forward

    def flops(self, parameters: int) -> float:
        """Floating-point operations, counted as a run counts them."""
        return flops_of(parameters, self.generated, self.forward, self.backward)


def guessed_behaviour(config: RunConfig, counts: PromptCounts) -> Behaviour:
    """The behaviour that is assumed if nothing was measured."""
    rollouts, training, evaluation = config.rollouts, config.training, config.evaluation
    length = GUESSED_LENGTH * rollouts.max_new_tokens
    per_target = rollouts.validation_responses or rollouts.responses
    prompt_tokens = _mean_tokens(counts.validation.values())
    return Behaviour(
        pool=_guessed(length, rollouts.responses, counts.pool.tokens),
        validation=_guessed(length, per_target, prompt_tokens),
        trained_tokens=GUESSED_LENGTH * (training.max_new_tokens or rollouts.max_new_tokens),
        evaluated_tokens=GUESSED_LENGTH * (evaluation.max_new_tokens or rollouts.max_new_tokens),
    )


def _guessed(length: float, responses: int, prompt_tokens: float) -> SampledSet:
    return SampledSet(length, GUESSED_INFORMATIVE, prompt_tokens + responses * (length - 1))


def workload(config: RunConfig, counts: PromptCounts, behaviour: Behaviour) -> list[Work]:
    """The work of a run: what all arms share first, then arm by arm, phases in their order."""
    plan = RunWork(config, counts, behaviour)
    shared = [
        *plan.start_up(),
        *plan.warmup(),
        *plan.start_rollouts(),
        *plan.evaluations(SHARED, 1),
    ]
    return [*shared, *(work for arm in config.strategies for work in plan.arm_work(arm))]


@dataclass(frozen=True)
class RunWork:
    """The work of the phases of a run."""

    config: RunConfig
    counts: PromptCounts
    behaviour: Behaviour

    def start_up(self) -> Iterator[Work]:
        """Starting the process and reading prompts and model, without any tokens."""
        yield Work(START_UP, SHARED, 0, starts=1)
        sets = [*self.counts.validation.values(), *self.counts.evaluated.values()]
        yield Work("prompts", SHARED, self.counts.pool.prompts + sum(s.prompts for s in sets))

    def warmup(self) -> Iterator[Work]:
        """The supervised steps."""
        settings = self.config.warmup
        if settings.steps or self.config.training.lora is not None:
            prompts = settings.steps * settings.batch_size
            tokens = prompts * (self.counts.pool.tokens + self.counts.answer_tokens)
            yield Work(
                "warmup", SHARED, prompts, forward=tokens, backward=tokens, steps=settings.steps
            )

    def start_rollouts(self) -> Iterator[Work]:
        """The start policy's rollouts of the whole pool and of every validation set, for arms that
        need them."""
        works: list[Work] = []
        for kind in ("pool", "validation"):
            if arms := tuple(arms_needing([self.config], kind)):
                of_kind = self._pool_rollouts if kind == "pool" else self._validation_rollouts
                works += (replace(work, payers=arms) for work in of_kind(SHARED))
        yield from _started_once(works)

    def _pool_rollouts(self, arm: str, prompts: float | None = None) -> Iterator[Work]:
        pool, responses = self.counts.pool, self.config.rollouts.responses
        count = pool.prompts if prompts is None else prompts
        yield _sampling(arm, pool, count, responses, self.behaviour.pool)

    def _validation_rollouts(self, arm: str) -> Iterator[Work]:
        settings, sampled = self.config.rollouts, self.behaviour.validation
        responses = settings.validation_responses or settings.responses
        for each in self.counts.validation.values():
            yield _sampling(arm, each, each.prompts, responses, sampled)

    def evaluations(self, arm: str, times: int) -> Iterator[Work]:
        """`times` evaluations of all evaluated sets."""
        sets = self.counts.evaluated.values()
        prompts = times * sum(each.prompts for each in sets)
        sampled = prompts * self.config.evaluation.responses
        if prompts:
            yield Work(
                "evaluation",
                arm,
                prompts,
                generated=sampled * self.behaviour.evaluated_tokens,
                forward=sampled * _mean_tokens(sets),
                responses=sampled,
                begins=times,
                starts=times,
            )

    def arm_work(self, strategy: StrategyChoice) -> Iterator[Work]:
        """All stages of an arm: rollouts sampled again, scoring, training and evaluation."""
        needs, arm = needs_of_arm(self.config, strategy), strategy.slug
        for work in self._pool_rollouts(arm, self.sampled(needs)) if needs.sample else ():
            yield replace(work, starts=self._portion_count(needs))
        yield from self._refreshed_rollouts(arm, needs)
        yield from self._scoring(arm, needs)
        yield self._training(arm, needs)
        yield from self.evaluations(arm, self._evaluations_due())

    def _refreshed_rollouts(self, arm: str, needs: Needs) -> Iterator[Work]:
        responses, pool = self.config.rollouts.responses, self.sampled(needs)
        for stage in range(self.config.curriculum.stages):
            kinds = sets_to_refresh(self.config.curriculum.refresh, stage, needs)
            if "stale" in kinds:
                yield Work("scoring", arm, pool, forward=pool * self._tokens_per_prompt(responses))
            works: list[Work] = []
            if "pool" in kinds or "stale" in kinds:
                works += self._pool_rollouts(
                    arm, pool * (1.0 if "pool" in kinds else GUESSED_STALE)
                )
            if "validation" in kinds:
                works += self._validation_rollouts(arm)
            yield from _started_once(works)

    def _tokens_per_prompt(self, responses: int) -> float:
        return self.counts.pool.tokens + responses * self.behaviour.pool.response_tokens

    def _scoring(self, arm: str, needs: Needs) -> Iterator[Work]:
        """Passes over informative prompts of pool and targets, and over all for hidden states."""
        stages = self.config.curriculum.stages
        times = {"never": 0, "once": 1, "stage": stages}[needs.scoring]
        if times:
            pool_prompts, pool_tokens = self._informative_pool(needs)
            target_prompts, target_tokens = self._target_passes(needs)
            tokens = times * (
                pool_tokens + target_tokens + self._sketch_fitting_tokens(pool_prompts)
            )
            prompts = times * (pool_prompts + target_prompts)
            starts = times * self._portion_count(needs)
            yield Work(
                "scoring",
                arm,
                prompts,
                forward=tokens,
                backward=tokens,
                begins=times,
                starts=starts,
            )
        if needs.hidden_states:
            read = self.counts.pool.prompts * self.counts.pool.tokens
            yield Work("scoring", arm, 0, forward=read, begins=1)

    def sampled(self, needs: Needs) -> float:
        """Prompts of the pool that are rolled out and scored: all, or a sample that grows."""
        return sampled_prompts(self.counts.pool.prompts, needs)

    def _portion_count(self, needs: Needs) -> int:
        """The number of portions in which a doubling sample is rolled out and scored."""
        if not needs.sample:
            return 1
        return 1 + max(0, math.ceil(math.log2(self.sampled(needs) / needs.sample)))

    def _informative_pool(self, needs: Needs) -> tuple[float, float]:
        pool = self.behaviour.pool
        prompts = self.sampled(needs) * pool.informative
        return prompts, prompts * pool.scored_tokens

    def _target_passes(self, needs: Needs) -> tuple[float, float]:
        """Prompts and tokens of the passes that compute the target directions."""
        passes = 2 if self.config.influence.target == "unit_mean" else 1
        if needs.direction == "pool":
            prompts, tokens = self._informative_pool(needs)
            return prompts, 2 * tokens
        sampled = self.behaviour.validation
        count = sum(each.prompts for each in self.counts.validation.values())
        return count * sampled.informative, (
            passes * count * sampled.informative * sampled.scored_tokens
        )

    def _sketch_fitting_tokens(self, pool_prompts: float) -> float:
        """Tokens that a fitted sketch reads from the pool before scoring."""
        choice = self.config.influence.sketch
        sketch = None if choice.is_exact else make_sketch(choice, PLACEHOLDER_SHAPES, seed=0)
        sample = sketch.sample if isinstance(sketch, FittedSketch) else 0
        return min(pool_prompts, sample) * self.behaviour.pool.scored_tokens

    def _training(self, arm: str, needs: Needs) -> Work:
        """All optimizer steps; dynamic sampling samples groups until enough have a gradient."""
        training, steps = self.config.training, self.config.curriculum.steps
        stages = self.config.curriculum.stages
        groups = steps * training.prompts_per_step
        sampled = groups * (self.sampled_per_trained if needs.dynamic_sampling else 1.0)
        length, prompt = self.behaviour.trained_tokens, self.counts.pool.tokens
        trained = groups * training.responses * (prompt + length)
        return Work(
            "training",
            arm,
            sampled,
            generated=sampled * training.responses * length,
            forward=trained + sampled * prompt,
            backward=trained,
            responses=sampled * training.responses,
            begins=stages,
            starts=self._evaluations_due() if self.counts.evaluated else stages,
            steps=steps,
        )

    @property
    def sampled_per_trained(self) -> float:
        """Groups that dynamic sampling samples for each one that it trains on."""
        return min(1 / max(self.behaviour.pool.informative, 1e-9), MAX_SAMPLING_ROUNDS)

    def _evaluations_due(self) -> int:
        """Evaluations of an arm: at every step that is due, and at the last one of a stage."""
        curriculum, every = self.config.curriculum, self.config.evaluation.every
        both = math.lcm(every, curriculum.steps_per_stage)
        return curriculum.steps // every + curriculum.stages - curriculum.steps // both


def _sampling(
    arm: str, each: SetCount, prompts: float, responses: int, sampled: SampledSet
) -> Work:
    count = prompts * responses
    return Work(
        "rollouts",
        arm,
        prompts,
        generated=count * sampled.response_tokens,
        forward=prompts * each.tokens,
        responses=count,
    )


def _started_once(works: Iterable[Work]) -> Iterator[Work]:
    """The work on sets of one policy, whose programs are started only for the first set."""
    return (replace(work, starts=int(i == 0)) for i, work in enumerate(works))


def sampled_prompts(pool: int, needs: Needs) -> float:
    """Prompts of a pool that are rolled out and scored for a strategy."""
    enough = max(needs.sample, GUESSED_SAMPLE) if needs.sample else pool
    return min(pool, enough, needs.most or pool)


def _mean_tokens(sets: Iterable[SetCount]) -> float:
    each = list(sets)
    prompts = sum(one.prompts for one in each)
    return sum(one.prompts * one.tokens for one in each) / max(1, prompts)


def summed_by_phase(works: Iterable[Work]) -> list[Work]:
    """The work summed by arm and phase, in order of first appearance."""
    total: dict[tuple[str, str], Work] = {}
    for work in works:
        key = (work.arm, work.phase)
        total[key] = _sum(total[key], work) if key in total else work
    return list(total.values())


def _sum(one: Work, other: Work) -> Work:
    names = ("prompts", "generated", "forward", "backward", "responses")
    counts = ("begins", "starts", "steps")
    return replace(one, **{n: getattr(one, n) + getattr(other, n) for n in (*names, *counts)})


def is_selection_cost(arm: str, work: Work) -> bool:
    """Whether this work is part of the cost of selecting for an arm."""
    return work.phase in SELECTION_PHASES and (work.arm == arm or arm in work.payers)
