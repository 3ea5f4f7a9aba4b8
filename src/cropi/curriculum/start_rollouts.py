"""Step 3: sample and judge responses of the start policy, once for all stages and arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cropi.curriculum.policies import Policies
from cropi.curriculum.run_context import RunLog, Seeds
from cropi.execution import Executor, showing_workers
from cropi.policy.reference import PolicyRef
from cropi.progress import Bar
from cropi.prompts import PromptSets
from cropi.prompts.encoding import encode_all
from cropi.rollouts import read_rollouts, rollout
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt, RolloutGroup
from cropi.store.cached import cached
from cropi.store.metrics import CostRow, cost_row
from cropi.store.run_directory import Stage
from cropi.text import plural
from cropi.verifiers import Judge


@dataclass(frozen=True)
class RolloutRequest:
    """Which rollouts are wanted: of the pool or a validation set, and responses per prompt.

    `arms` are those that use the start policy's rollouts of this kind, and therefore pay for them.
    """

    kind: str
    name: str
    prompts: Sequence[Prompt]
    responses: int
    arms: Sequence[str] = ()


def rollout_requests(
    settings: RolloutsConfig, sets: PromptSets, arms: Mapping[str, Sequence[str]]
) -> list[RolloutRequest]:
    """Return the requests for the pool and every validation set; `arms` by kind."""
    for_validation = settings.validation_responses or settings.responses
    return [
        RolloutRequest("pool", "", sets.pool, settings.responses, arms["pool"]),
        *(
            RolloutRequest("validation", name, prompts, for_validation, arms["validation"])
            for name, prompts in sets.validation.items()
        ),
    ]


@dataclass(frozen=True)
class Sampler:
    """Samples and judges rollouts as the settings say, from whichever policy it is given.

    `verifier_settings` are those that decide rewards.
    """

    settings: RolloutsConfig
    verifier_settings: Mapping[str, Any]
    template_kwargs: Mapping[str, Any]
    judge: Judge
    seeds: Seeds
    log: RunLog
    executor: Executor | None = None

    def inputs(
        self, request: RolloutRequest, policy_key: str, stage: Stage | None = None
    ) -> tuple[Any, ...]:
        """Return everything that determines the rollouts of a request."""
        return (
            policy_key,
            asdict(self.settings.sampling),
            self.settings.engine.result_settings,
            self.verifier_settings,
            self.template_kwargs,
            request.responses,
            self._seed(request, stage),
            [(p.prompt_id, p.content, p.answer, p.source) for p in request.prompts],
        )

    def sample(
        self,
        policy: Callable[[], PolicyRef],
        policy_key: str,
        request: RolloutRequest,
        out: Path,
        stage: Stage | None = None,
        listed: bool = True,
    ) -> list[RolloutGroup]:
        """Return the rollouts of a request from `out`, sampled if necessary.

        `policy` returns the policy to sample from, which `policy_key` identifies; `stage` is the
        one that samples again, whose seeds differ from the start's. A file that does not stay is
        not `listed` in the run's ledger.
        """

        def sample_missing(inputs_fingerprint: str) -> None:
            with self._phase(request, stage) as bar:
                rollout(
                    policy(),
                    request.prompts,
                    out,
                    self.settings.model_copy(update={"responses": request.responses}),
                    verifier=self.judge,
                    seed=self._seed(request, stage),
                    template_kwargs=self.template_kwargs,
                    inputs_fingerprint=inputs_fingerprint,
                    executor=self.executor,
                    progress=showing_workers(bar.update, self.executor),
                )
                count = plural(len(request.prompts), "prompt")
                bar.note = f"{count} x {plural(request.responses, 'response')}"

        inputs = self.inputs(request, policy_key, stage)
        ledger = self.log.directory.ledger if listed else None
        return read_rollouts(cached(out, inputs, sample_missing, ledger))

    def _phase(self, request: RolloutRequest, stage: Stage | None) -> AbstractContextManager[Bar]:
        what = request.name if request.kind == "validation" else request.kind
        title = f"{stage.title if stage else ''} rollouts {what}".strip()
        shared = {} if stage else {"set": request.kind, "arms": list(request.arms)}
        return self.log.phase(title, "rollouts", stage, len(request.prompts), **shared)

    def _seed(self, request: RolloutRequest, stage: Stage | None) -> int:
        place = (stage.arm, stage.index) if stage else ()
        return self.seeds.of("rollouts", request.kind, request.name, *place)


StartRollouts = dict[tuple[str, str], list[RolloutGroup]]
"""The start policy's rollouts, by kind and name of their set."""


def collect_rollouts(
    start: str, requests: Sequence[RolloutRequest], sampler: Sampler, policies: Policies
) -> StartRollouts:
    """Collect what is missing of the sets that an arm uses, and report how informative they are.

    Of a set that no arm uses, or only a part of, there are no rollouts.
    """
    policy_key, directory = policies.key(start), sampler.log.directory
    rollouts = {}
    with ExitStack() as stack:  # the sets share what is started for the policy
        policy = cache(lambda: stack.enter_context(policies.reference(start)))
        for each in requests:
            if each.arms:
                out = directory.rollouts(each.kind, each.name)
                groups = sampler.sample(policy, policy_key, each, out)
            else:
                groups = unsampled(policy().tokenizer, each.prompts, sampler.template_kwargs)
            rollouts[each.kind, each.name] = groups
    report_pool(rollouts["pool", ""], sampler.log)
    return rollouts


def unsampled(
    tokenizer: Any, prompts: Sequence[Prompt], template_kwargs: Mapping[str, Any]
) -> list[RolloutGroup]:
    """The prompts of a set, without responses."""
    encoded = encode_all(tokenizer, prompts, template_kwargs)
    return [
        RolloutGroup(prompt.prompt_id, np.array(ids, np.int32), [])
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]


def without_responses(group: RolloutGroup) -> RolloutGroup:
    """The prompt of a group alone."""
    return RolloutGroup(group.prompt_id, group.prompt_ids, [])


def collection_costs(
    requests: Sequence[RolloutRequest], rollouts: StartRollouts, parameters: int
) -> list[CostRow]:
    """Return the cost of the start policy's rollouts, by kind, with the arms that pay for it."""
    rows = []
    for kind in ("pool", "validation"):
        of_kind = [each for each in requests if each.kind == kind]
        groups = [g for each in of_kind for g in rollouts[kind, each.name]]
        arms = of_kind[0].arms if of_kind else ()
        if arms:
            rows.append(rollout_cost(groups, parameters, set=kind, arms=list(arms)))
    return rows


def rollout_cost(
    groups: Sequence[RolloutGroup],
    parameters: int,
    arm: str = "",
    stage: int | None = None,
    **shared: Any,
) -> CostRow:
    """Return the cost of sampling these groups: what was sampled, and each prompt's prefill."""
    generated = sum(group.tokens for group in groups)
    prefill = sum(len(group.prompt_ids) for group in groups)
    return cost_row(
        "rollouts", parameters, arm, stage, generated=generated, forward=prefill, **shared
    )


def report_pool(groups: Sequence[RolloutGroup], log: RunLog) -> None:
    """Say how informative the pool's rollouts are, and how many could not be judged."""
    sampled = [group for group in groups if group.responses]
    if not sampled:
        return
    informative = np.mean([group.informative for group in sampled])
    log.reporter.info(
        f"  {informative:.0%} of {plural(len(sampled), 'prompt')} are informative", style="dim"
    )
    statuses = Counter(r.reward_status for g in groups for r in g.responses)
    log.warn(
        [
            f"{count:,} pool responses could not be judged ({status})"
            for status, count in statuses.items()
            if status != "ok"
        ]
    )
