"""The method in one loop (docs/method.md, arXiv 2510.26491 algorithm 1).

Rollouts are collected once, from the start policy. Before every stage, the strategy gets the
influence that it asks for, selects prompts, and GRPO trains on them. The paper's (`ranking`)
computes influence of the whole pool under the *current* policy before every stage, from those same
rollouts; the default (`cropi`) computes it once, of a sample of the pool, and predicts the rest.
Where the settings say so, stale rollouts are sampled again. Baselines go through the same loop.

Every step leaves a file and does nothing if that file is there and was made from the same inputs,
so a run that was killed anywhere continues when it is run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cropi.config import RunConfig, resolve_model_path
from cropi.curriculum.evaluator import evaluate_start, start_evaluation_costs
from cropi.curriculum.policies import Policies, delete_old_checkpoints
from cropi.curriculum.run_context import (
    RunLog,
    Seeds,
    check_settings,
    first_stage,
    needs_of_arm,
    open_directory,
    recording_failures,
)
from cropi.curriculum.run_steps import Steps
from cropi.curriculum.start_rollouts import StartRollouts, collect_rollouts, collection_costs
from cropi.curriculum.starting_point import (
    load_run_prompts,
    make_start_policy,
    record_inputs,
    warmup_costs,
)
from cropi.progress import ProgressReporter
from cropi.schema import fingerprint
from cropi.selection.settings import StrategyChoice
from cropi.store.metrics import write_rows
from cropi.store.mirror import exclusive_run
from cropi.store.run_directory import RunDirectory
from cropi.training import find_trainer
from cropi.verifiers import Judge


def run(
    config: RunConfig, base: Path | None = None, reporter: ProgressReporter | None = None
) -> Path:
    """Run the curriculum and its baselines; return the run directory.

    Relative paths in the config may start from `base` as well as the current directory. Raises
    InputError for anything in the config, the prompts or the model that cannot be used.
    """
    with open_curriculum(config, base, reporter) as curriculum:
        for strategy in config.strategies:
            with curriculum.steps.trainer.log.trackers.for_arm(strategy.slug):
                curriculum.train(strategy)
    return config.directory


@dataclass(frozen=True)
class Curriculum:
    """The stages of a run, after its start policy and that policy's rollouts."""

    config: RunConfig
    directory: RunDirectory
    start: str
    start_rollouts: StartRollouts
    steps: Steps

    def train(self, strategy: StrategyChoice) -> str:
        """Train a strategy through all stages; return the path of its last policy."""
        steps, settings = self.steps, self.config.curriculum
        needs, policy = needs_of_arm(self.config, strategy), self.start
        start_rollouts, first = self.start_rollouts, self.directory.stages(strategy.slug, 1)[0]
        hidden_states = partial(
            steps.hidden_states.read, first, self.start, start_rollouts["pool", ""]
        )
        if needs.sample:
            start_rollouts = steps.sample.grow(
                first, strategy, needs, policy, start_rollouts, hidden_states
            )
        for stage in self.directory.stages(strategy.slug, settings.stages):
            rollouts = steps.refresh.rollouts(stage, needs, policy, start_rollouts)
            scores = steps.scorer.scores(stage, needs, policy, rollouts)
            selection = steps.selector.selection(
                stage, strategy, scores, rollouts, policy, hidden_states
            )
            policy = steps.trainer.train(stage, selection, policy, needs.dynamic_sampling)
            self.gather_metrics()
            delete_old_checkpoints(
                self.directory.ledger, stage, settings.stages, settings.keep_checkpoints
            )
        return policy

    def gather_metrics(self) -> None:
        """Rebuild metrics.jsonl from every finished stage, arms in order."""
        stages = self.config.curriculum.stages
        self.directory.gather_metrics(
            stage
            for strategy in self.config.strategies
            for stage in self.directory.stages(strategy.slug, stages)
        )


@contextmanager
def open_curriculum(
    config: RunConfig,
    base: Path | None = None,
    reporter: ProgressReporter | None = None,
    sharing_runs: Sequence[RunConfig] = (),
) -> Iterator[Curriculum]:
    """Open a run and make what all its arms share: prompts, start policy and its rollouts.

    Rollouts are made for the arms of `sharing_runs`, or of this run if there are none. No other
    process can work in its directory meanwhile.
    """
    config, reporter = resolve_model_path(config, base), reporter or ProgressReporter()
    check_settings(config, base, reporter)
    with exclusive_run(config.directory, config.url), Judge(config.verifiers, base) as judge:
        log = RunLog.of(config, open_directory(config), reporter)
        config = _with_logs(config, log.directory.logs)
        with recording_failures(log.directory, config.code_by_name):
            yield _prepare(config, base, judge, log, sharing_runs)
        if note := judge.unjudged():
            log.warn([note])


def _with_logs(config: RunConfig, folder: Path) -> RunConfig:
    """The config with the logs of engines that run programs in `folder`."""
    rollouts, evaluation = config.rollouts, config.evaluation
    sampling = rollouts.model_copy(update={"engine": rollouts.engine.logging_to(folder)})
    other = evaluation.engine and evaluation.engine.logging_to(folder)
    measuring = evaluation.model_copy(update={"engine": other})
    return config.model_copy(update={"rollouts": sampling, "evaluation": measuring})


def _prepare(
    config: RunConfig,
    base: Path | None,
    judge: Judge,
    log: RunLog,
    sharing_runs: Sequence[RunConfig],
) -> Curriculum:
    directory, seeds = log.directory, Seeds(config.seed, config.data_seed)
    policies = Policies(config.model, config.result_settings("model"))
    longest, seed = config.longest_response, seeds.of("prompts")
    sets = load_run_prompts(config.prompts, policies, judge, seed, longest, base, log)
    find_trainer(config.training.engine).check(first_stage(config, sets.pool))
    graders = {"verifiers": fingerprint(judge.code)} if judge.code else {}
    record_inputs(directory, sets, policies, seeds.by_name(config), config.code | graders)
    start = make_start_policy(
        directory.start, sets, policies, config.warmup, config.training, seeds, base, log
    )
    steps = Steps.of(config, sets, policies, judge, seeds, log, sharing_runs)
    evaluate_start(steps.evaluator, start, policies, log)
    rollouts = collect_rollouts(start, steps.requests, steps.sampler, policies)
    shared_costs = [
        *collection_costs(steps.requests, rollouts, policies.parameters),
        *start_evaluation_costs(log, policies.parameters),
        *warmup_costs(directory.start, policies.parameters),
    ]
    write_rows(directory.shared_costs, shared_costs)
    curriculum = Curriculum(config, directory, start, rollouts, steps)
    curriculum.gather_metrics()
    return curriculum
