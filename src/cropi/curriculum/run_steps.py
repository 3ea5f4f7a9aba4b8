"""The steps of a run, made in one place: each gets only the settings and parts that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropi.config import RunConfig
from cropi.curriculum.evaluator import Evaluator
from cropi.curriculum.policies import Policies
from cropi.curriculum.pool_forward_passes import PoolHiddenStates
from cropi.curriculum.pool_sample import PoolSample
from cropi.curriculum.run_context import RunLog, Seeds, arms_needing, first_stage
from cropi.curriculum.stage_rollouts import RolloutRefresh
from cropi.curriculum.stage_selection import PromptSelector, StageScorer
from cropi.curriculum.stage_training import StageTrainer
from cropi.curriculum.start_rollouts import RolloutRequest, Sampler, rollout_requests
from cropi.execution import executor_for
from cropi.prompts import PromptSets
from cropi.verifiers import Judge


@dataclass(frozen=True)
class Steps:
    """What the start and every stage of a run are made with."""

    evaluator: Evaluator
    requests: Sequence[RolloutRequest]
    sampler: Sampler
    refresh: RolloutRefresh
    hidden_states: PoolHiddenStates
    sample: PoolSample
    scorer: StageScorer
    selector: PromptSelector
    trainer: StageTrainer

    @classmethod
    def of(
        cls,
        config: RunConfig,
        sets: PromptSets,
        policies: Policies,
        judge: Judge,
        seeds: Seeds,
        log: RunLog,
        sharing_runs: Sequence[RunConfig] = (),
    ) -> Steps:
        """Make the steps from the settings of a run; `sharing_runs` use its rollouts."""
        users = sharing_runs or [config]
        arms = {kind: arms_needing(users, kind) for kind in ("pool", "validation")}
        requests = rollout_requests(config.rollouts, sets, arms)
        evaluator = _evaluator(config, sets, judge, seeds)
        executor = executor_for(config.scale)
        sampler = Sampler(
            settings=config.rollouts,
            verifier_settings=config.result_settings("verifiers"),
            template_kwargs=config.prompts.chat_template_kwargs,
            judge=judge,
            seeds=seeds,
            log=log,
            executor=executor,
        )
        scorer = StageScorer(
            settings=config.influence,
            result_settings=config.result_settings("influence"),
            seed=seeds.of("sketch"),
            longest_response=config.rollouts.max_new_tokens,
            policies=policies,
            log=log,
            executor=executor,
        )
        return cls(
            evaluator=evaluator,
            requests=requests,
            sampler=sampler,
            refresh=RolloutRefresh(
                when=config.curriculum.refresh,
                batch_tokens=config.influence.batch_tokens,
                requests=requests,
                sampler=sampler,
                policies=policies,
            ),
            hidden_states=PoolHiddenStates(policies, log),
            sample=PoolSample(
                requests=requests,
                sampler=sampler,
                scorer=scorer,
                selection=config.selection,
                threshold=config.verifiers.threshold,
                policies=policies,
            ),
            scorer=scorer,
            selector=PromptSelector(
                settings=config.selection,
                visits=config.curriculum.steps_per_stage * config.training.prompts_per_step,
                group_size=config.training.responses,
                sets=sets,
                threshold=config.verifiers.threshold,
                batch_tokens=config.influence.batch_tokens,
                policies=policies,
                seeds=seeds,
                log=log,
            ),
            trainer=_trainer(config, sets, evaluator, policies, seeds, log),
        )


def _evaluator(config: RunConfig, sets: PromptSets, judge: Judge, seeds: Seeds) -> Evaluator:
    return Evaluator(
        sets=sets.test or sets.validation,
        targeted=config.targeted,
        settings=config.evaluation,
        rollouts=config.rollouts,
        template_kwargs=config.prompts.chat_template_kwargs,
        judge=judge,
        judge_settings=config.result_settings("verifiers"),
        seed=seeds.of("evaluation"),
    )


def _trainer(
    config: RunConfig,
    sets: PromptSets,
    evaluator: Evaluator,
    policies: Policies,
    seeds: Seeds,
    log: RunLog,
) -> StageTrainer:
    return StageTrainer(
        pool=sets.pool,
        plan=first_stage(config),
        result_settings=[
            config.result_settings(section) for section in ("training", "curriculum", "evaluation")
        ],
        evaluator=evaluator,
        policies=policies,
        seeds=seeds,
        log=log,
    )
