"""A trainer and an engine that keep their Protocols and train and sample nothing.

Runs that are about files, costs, caching or order use them by name; tests/training and
tests/curriculum/test_real_run.py keep the real ones, and tests/training/test_trainer_contract.py
and tests/rollouts/test_engine_contract.py hold both to the same behaviour.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cropi.pocket.tasks import SKILLS
from cropi.policy.loading import Policy, load_policy
from cropi.policy.reference import PolicyRef, named_anywhere
from cropi.prompts.encoding import encode_all
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.judged_groups import judge_completions
from cropi.schema import Prompt, Response, RolloutGroup, Sampling, derive_seed
from cropi.training import StageOutcome, StagePlan
from cropi.training.stage import EvaluationCallback, Row
from cropi.verifiers import Judge
from cropi.verifiers.verdict import Verdict

ENGINE = "support.fakes:FakeEngine"
TRAINER = "support.fakes:FakeTrainer"
BY_LETTER = {skill.levels[0].render(0)[0]: skill for skill in SKILLS.values()}


class FakeEngine:
    """Answers of pocket's skills, right or wrong by lot, without a forward pass.

    What is drawn depends on the prompt, the seed and the weights. A prompt has a pass rate of its
    own, from never to always.
    """

    def __init__(self, policy: Policy | PolicyRef) -> None:
        self.policy = PolicyRef.of(policy).load()

    @property
    def context(self) -> int:
        return self.policy.context

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling, n: int, seed: int
    ) -> list[list[Completion]]:
        weights = weights_seed(self.policy.model)
        return [
            list(self._responses(list(ids), sampling, n, derive_seed(seed, weights, place)))
            for place, ids in enumerate(prompt_ids)
        ]

    def _responses(
        self, ids: list[int], sampling: Sampling, n: int, seed: int
    ) -> Iterator[Completion]:
        prompt, draws = self.policy.tokenizer.decode(ids), np.random.default_rng(seed)
        right, rate = answer(prompt), derive_seed(0, prompt) % 5 / 4
        for passes in draws.random(n) < rate:
            text = right if passes else str(draws.integers(10_000, 100_000))
            row = [*self.policy.tokenizer(text)["input_ids"], self.policy.eos_token_ids[0]]
            row = row[: sampling.max_new_tokens]
            stopped = row[-1] in self.policy.eos_token_ids
            yield Completion(
                np.array(row, np.int32),
                draws.uniform(-1.0, -0.1, len(row)).astype(np.float32),
                "stop" if stopped else "length",
            )


def answer(prompt: str) -> str:
    """The right answer to a prompt of pocket's."""
    return BY_LETTER[prompt[0]].answer(prompt)


def weights_seed(model: torch.nn.Module) -> str:
    """Something that differs between policies."""
    return repr(sum(float(p.detach().flatten()[-1]) for p in model.parameters()))


class FakeTrainer:
    """Random gradients through a real AdamW; samples with FakeEngine, and counts everything."""

    def check(self, plan: StagePlan) -> list[str]:
        return []

    def train(
        self,
        plan: StagePlan,
        judge: Judge,
        out: Path,
        evaluate: EvaluationCallback | None = None,
        progress: Callable[[int, Row], None] | None = None,
        outcome: StageOutcome | None = None,
    ) -> StageOutcome:
        assert not plan.dynamic_sampling, "the fake trainer takes every prompt as it comes"
        stage = _Stage(plan, judge, outcome if outcome is not None else StageOutcome())
        for done in range(1, plan.steps + 1):
            stage.step(done)
            step = plan.first_step + done
            due = plan.evaluate_every and step % plan.evaluate_every == 0
            if evaluate and (due or done == plan.steps):
                evaluate(stage.policy, step)
            if progress:
                progress(done, stage.outcome.log[-1])
        stage.save(out)
        return stage.outcome


class _Stage:
    def __init__(self, plan: StagePlan, judge: Judge, outcome: StageOutcome) -> None:
        self.plan = plan
        self.judge = judge
        self.outcome = outcome
        self.policy = load_policy(plan.start, dtype=plan.training.dtype, device="cpu")
        self.parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.parameters, lr=plan.training.learning_rate)
        self.began = time.perf_counter()
        if plan.first_step:
            saved = torch.load(Path(plan.start) / "optimizer.pt", weights_only=True)
            self.adam.load_state_dict(saved)

    def step(self, done: int) -> None:
        plan, step = self.plan, self.plan.first_step + done
        size = plan.training.prompts_per_step
        rewards = self._sample(plan.prompts[(done - 1) * size : done * size], step)
        rate = plan.training.learning_rate * (1 - (step - 1) / plan.horizon)
        self._move(rate, step)
        seconds = time.perf_counter() - self.began
        self.outcome.clock.append((step, seconds))
        mean = float(np.mean(rewards))
        self.outcome.log.append(
            {"step": step, "reward": mean, "loss": 0.0, "grad_norm": 1.0, "learning_rate": rate}
        )

    def _sample(self, prompts: Sequence[Prompt], step: int) -> list[float]:
        plan, policy = self.plan, self.policy
        encoded = encode_all(policy.tokenizer, prompts, plan.template_kwargs)
        sampling, seed = Sampling(max_new_tokens=plan.new_tokens), derive_seed(plan.seed, step)
        completions = FakeEngine(policy).generate(encoded, sampling, plan.training.responses, seed)
        judged = judge_completions(self.judge, policy.tokenizer, prompts, completions)
        identity = replace(named_anywhere(policy.identity), step=step - 1)
        groups = [
            RolloutGroup(
                prompt.prompt_id,
                np.array(ids, np.int32),
                [_response(*each) for each in group],
                sampling,
                identity,
                seed,
            )
            for prompt, ids, group in zip(prompts, encoded, judged, strict=True)
        ]
        self._count(groups)
        return [float(r) for g in groups for r in g.rewards] or [0.0]

    def _count(self, groups: list[RolloutGroup]) -> None:
        outcome = self.outcome
        outcome.rollouts += groups
        outcome.prompts_sampled += len(groups)
        for group in groups:
            outcome.generated_tokens += group.tokens
            outcome.prefill_tokens += len(group.prompt_ids)
            outcome.trained_tokens += group.tokens + len(group.prompt_ids) * len(group.responses)
            for response in group.responses:
                status = response.reward_status
                outcome.statuses[status] = outcome.statuses.get(status, 0) + 1

    def _move(self, rate: float, step: int) -> None:
        draws = torch.Generator().manual_seed(derive_seed(self.plan.seed, "fake", step) % 2**63)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()

    def save(self, out: Path) -> None:
        self.policy.model.save_pretrained(out)
        self.policy.tokenizer.save_pretrained(out)
        torch.save(self.adam.state_dict(), out / "optimizer.pt")
        state: dict[str, Any] = {"global_step": self.plan.first_step + self.plan.steps}
        (out / "trainer_state.json").write_text(json.dumps(state))


def _response(completion: Completion, text: str, verdict: Verdict) -> Response:
    reward = verdict.reward if verdict.status == "ok" else float("nan")
    return Response(
        completion.ids,
        completion.logprobs,
        text,
        completion.finish_reason,
        reward,
        verdict.status,
    )
