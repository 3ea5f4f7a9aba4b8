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
from cropi.execution import Executor
from cropi.policy.reference import PolicyRef
from cropi.progress import Bar
from cropi.prompts import PromptSets
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
            self.settings.engine.deciding,
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
    ) -> list[RolloutGroup]:
        """Return the rollouts of a request from `out`, sampled if necessary.

        `policy` returns the policy to sample from, which `policy_key` identifies; `stage` is the
        one that samples again, whose seeds differ from the start's.
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
                    progress=bar.update,
                )
                count = plural(len(request.prompts), "prompt")
                bar.note = f"{count} x {plural(request.responses, 'response')}"

        inputs, ledger = self.inputs(request, policy_key, stage), self.log.directory.ledger
        return read_rollouts(cached(out, inputs, sample_missing, ledger))

    def _phase(self, request: RolloutRequest, stage: Stage | None) -> AbstractContextManager[Bar]:
        title = f"{stage.title if stage else ''} rollouts {request.name or request.kind}".strip()
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
    """Collect what is missing, and report how informative the pool is."""
    policy_key, directory = policies.key(start), sampler.log.directory
    with ExitStack() as stack:  # the sets share what is started for the policy
        policy = cache(lambda: stack.enter_context(policies.reference(start)))
        rollouts = {
            (each.kind, each.name): sampler.sample(
                policy, policy_key, each, directory.rollouts(each.kind, each.name)
            )
            for each in requests
        }
    _report(rollouts["pool", ""], sampler.log)
    return rollouts


def collection_costs(
    requests: Sequence[RolloutRequest], rollouts: StartRollouts, parameters: int
) -> list[CostRow]:
    """Return the cost of the start policy's rollouts, by kind, with the arms that pay for it."""
    rows = []
    for kind in ("pool", "validation"):
        of_kind = [each for each in requests if each.kind == kind]
        groups = [g for each in of_kind for g in rollouts[kind, each.name]]
        arms = of_kind[0].arms if of_kind else ()
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


def _report(groups: Sequence[RolloutGroup], log: RunLog) -> None:
    informative = np.mean([g.informative for g in groups])
    log.reporter.say(f"  {informative:.0%} of the pool is informative", style="dim")
    statuses = Counter(r.reward_status for g in groups for r in g.responses)
    log.warn(
        [
            f"{count:,} pool responses could not be judged ({status})"
            for status, count in statuses.items()
            if status != "ok"
        ]
    )
