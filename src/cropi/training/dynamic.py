"""Dynamic sampling: every trained group has a gradient (DAPO, arXiv 2503.14476, section 3.2).

A group whose rewards are all equal has zero advantages: it takes a place in the batch and teaches
nothing. DAPO continues sampling until the batch holds only groups with some responses right and
some wrong; with graded rewards that means: not all rewards are equal. Two things differ from the
released implementation, which samples batches of a fixed size and throws surplus groups away. A
round asks for exactly as many prompts as are missing, so nothing that could be trained on is
wasted; and after MAX_SAMPLING_ROUNDS the step is filled with the groups dropped last, whose
advantages are zero, instead of ending the run.

It needs no trainer of its own: TRL's GRPOTrainer takes a `rollout_func` in place of its own
sampling, and lets it return other prompts than it was given. Responses are drawn from the policy
as it is in evaluation, without dropout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cropi.errors import InputError
from cropi.policy.loading import Policy
from cropi.rollouts import load_engine
from cropi.rollouts.engines.engine import Completion
from cropi.schema import Prompt, Sampling, derive_seed
from cropi.training.rewards import JudgedRewards, SampledGroup, informative
from cropi.training.stage import MAX_SAMPLING_ROUNDS, StagePlan

UNSUPPORTED_GRPO_KEYS = {
    "min_p": "its rollouts have temperature, top_p and top_k only",
    "repetition_penalty": "its rollouts have temperature, top_p and top_k only",
    "generation_kwargs": "its rollouts have temperature, top_p and top_k only",
    "cache_implementation": "rollouts.engine samples",
    "use_vllm": "rollouts.engine samples",
    "use_transformers_continuous_batching": "rollouts.engine samples",
    "use_transformers_paged": "rollouts.engine samples",
    "log_completions": "TRL would print responses next to prompts that are not theirs",
}
"""Settings of GRPOConfig that only TRL's own sampling reads, or that it would get wrong here."""


def check_dynamic(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `grpo` key that dynamic sampling would ignore."""
    for key, reason in UNSUPPORTED_GRPO_KEYS.items():
        if settings.get(key):
            raise InputError(
                f"training.engine.grpo.{key} = {settings[key]!r} does not go with dynamic sampling "
                f"({reason}); leave it out, or train without dynamic sampling"
            )


class DynamicSampler:
    """TRL's `rollout_func`: samples a step's groups, and drops those without a gradient.

    `candidates_used` counts the plan's candidates that were sampled, `prompts_trained` lists the
    prompts of the groups handed to TRL, and `uninformative_trained` counts those of them without a
    gradient.
    """

    def __init__(
        self,
        plan: StagePlan,
        policy: Policy,
        rewards: JudgedRewards,
        encoded: Mapping[str, Sequence[int]],
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.rewards = rewards
        self.encoded = encoded
        self.candidates_used = 0
        self.prompts_trained: list[str] = []
        self.uninformative_trained = 0

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Return a step's groups as TRL wants them, one entry per response.

        Of `prompts` only the number counts. `logprobs` is None, as from TRL's own generation with
        transformers: given any, TRL could correct for a sampler that is not the policy.
        """
        size = self.plan.training.prompts_per_step
        assert len(prompts) == size * self.rewards.group_size, "TRL samples another batch"
        before = self.candidates_used
        groups = self._step(trainer, size)
        rows = [(group, ids) for group in groups for ids in group.completions]
        return {
            "prompt_ids": [list(self.encoded[group.prompt_id]) for group, _ in rows],
            "completion_ids": [ids for _, ids in rows],
            "logprobs": None,
            "prompt_id": [group.prompt_id for group, _ in rows],
            "verdict": [verdict for group in groups for verdict in group.verdicts],
            "candidates": [self.candidates_used - before] * len(rows),
        }

    def require_trained(self) -> None:
        """Assert that TRL and this sampler did what dynamic sampling promises."""
        rewards = self.rewards
        candidates = [p.prompt_id for p in self.plan.prompts[: self.candidates_used]]
        assert rewards.sampled == candidates, "candidates were sampled in another order"
        assert Counter(rewards.trained) <= Counter(candidates), (
            "TRL trained on a prompt that is not a candidate"
        )
        assert rewards.uninformative == self.uninformative_trained, (
            "TRL trained on groups without a gradient"
        )

    def _step(self, trainer: Any, size: int) -> list[SampledGroup]:
        """Sample until there are `size` informative groups, or as many as the bounds allow."""
        useful: list[SampledGroup] = []
        dropped: list[SampledGroup] = []
        end = self._last_candidate()
        for number in range(MAX_SAMPLING_ROUNDS):
            start = self.candidates_used
            candidates = self.plan.prompts[start : min(start + size - len(useful), end)]
            if not candidates:
                break
            self.candidates_used += len(candidates)
            for group in self._sample(trainer, candidates, number):
                (useful if informative(group.verdicts) else dropped).append(group)
        missing = size - len(useful)
        self.uninformative_trained += missing
        groups = useful + dropped[len(dropped) - missing :]
        self.prompts_trained += [group.prompt_id for group in groups]
        return groups

    def _last_candidate(self) -> int:
        """Where this step's candidates must end, so that every later step has its share."""
        size = self.plan.training.prompts_per_step
        later = self.plan.steps - len(self.prompts_trained) // size - 1
        return len(self.plan.prompts) - later * size

    def _sample(
        self, trainer: Any, candidates: Sequence[Prompt], number: int
    ) -> list[SampledGroup]:
        """Sample and judge a group for each candidate, from the policy as it is now.

        The seed is that of step and round, so a stage that is trained again repeats its responses.
        """
        plan, settings = self.plan, trainer.args
        model = trainer.accelerator.unwrap_model(trainer.model)
        # A new engine every time: one that copies the weights would sample from old ones.
        policy = replace(self.policy, model=model)
        engine = load_engine(plan.rollouts.engine, policy)
        seed = derive_seed(plan.seed, "dynamic", int(trainer.state.global_step), number)
        encoded = [list(self.encoded[p.prompt_id]) for p in candidates]
        with trainer.accelerator.autocast():
            sampled = engine.generate(encoded, sampling_of(settings), self.rewards.group_size, seed)
        return self._judged(candidates, sampled)

    def _judged(
        self, candidates: Sequence[Prompt], sampled: Sequence[Sequence[Completion]]
    ) -> list[SampledGroup]:
        """Judge all groups in one call."""
        names = [p.prompt_id for p, group in zip(candidates, sampled, strict=True) for _ in group]
        flat = [completion for group in sampled for completion in group]
        ids = [completion.ids.tolist() for completion in flat]
        texts = self.policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return self.rewards.judged(names, texts, ids, [c.logprobs for c in flat])


def sampling_of(settings: Any) -> Sampling:
    """How a GRPOConfig draws responses."""
    return Sampling(
        settings.temperature, settings.top_p, settings.top_k or 0, settings.max_completion_length
    )
