"""Dynamic sampling: every trained group has a gradient (DAPO, arXiv 2503.14476, section 3.2).

A group whose rewards are all equal has zero advantages: it takes a place in the batch and teaches
nothing. DAPO samples on until the batch holds only groups with some responses right and some
wrong; with graded rewards that reads: not all rewards equal. Two things differ from the released
implementation, which samples batches of a fixed size and throws surplus groups away. A round asks
for exactly as many prompts as are missing, so nothing that could be trained on is wasted; and
after MAX_SAMPLING_ROUNDS the step is filled with the groups dropped last, whose advantages are
zero, instead of ending the run.

It needs no trainer of its own: TRL's GRPOTrainer takes a `rollout_func` in place of its own
sampling, and lets it return other prompts than it was given. Responses are drawn from the policy
as it is in evaluation, without dropout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cropi.errors import InputError
from cropi.policy.loading import Policy
from cropi.rollouts import load_engine
from cropi.rollouts.engines.engine import require_context
from cropi.schema import Prompt, Sampling, derive_seed
from cropi.training.rewards import JudgedRewards, informative
from cropi.training.stage import MAX_SAMPLING_ROUNDS, StagePlan
from cropi.verifiers.verdict import Verdict

UNSUPPORTED_GRPO_KEYS = {
    "min_p": "its rollouts know temperature, top_p and top_k",
    "repetition_penalty": "its rollouts know temperature, top_p and top_k",
    "generation_kwargs": "its rollouts know temperature, top_p and top_k",
    "cache_implementation": "rollouts.engine samples",
    "use_vllm": "rollouts.engine samples",
    "use_transformers_continuous_batching": "rollouts.engine samples",
    "use_transformers_paged": "rollouts.engine samples",
    "log_completions": "TRL would print responses beside other prompts than theirs",
}
"""Settings of GRPOConfig that only TRL's own sampling reads, or that it would get wrong here."""


def check_dynamic(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a `training.engine.grpo` key that dynamic sampling would leave inert."""
    for key, reason in UNSUPPORTED_GRPO_KEYS.items():
        if settings.get(key):
            raise InputError(
                f"training.engine.grpo.{key} = {settings[key]!r} does not go with dynamic sampling "
                f"({reason}); leave it out, or train without dynamic sampling"
            )


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """One prompt's token ids, its responses' token ids and the verdicts on them."""

    prompt_id: str
    prompt_ids: list[int]
    completions: list[list[int]]
    verdicts: list[Verdict]


class DynamicSampler:
    """TRL's `rollout_func`: samples a step's groups, and drops those without a gradient.

    `taken` counts the plan's candidates used up, `kept` lists the prompts of the groups handed to
    TRL, and `uninformative_trained` counts those of them without a gradient.
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
        self.taken = 0
        self.kept: list[str] = []
        self.uninformative_trained = 0
        new_tokens = plan.training.max_new_tokens or plan.rollouts.max_new_tokens
        require_context(list(encoded.items()), new_tokens, policy.context)

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Return a step's groups as TRL wants them, one entry a response.

        `prompts` only say how many are wanted. `logprobs` is None as in TRL's own sampling with
        transformers: with given ones it could correct for a sampler other than the policy.
        """
        size = self.plan.training.prompts_per_step
        assert len(prompts) == size * self.plan.training.responses, "TRL samples another batch"
        before = self.taken
        groups = self._step(trainer, size)
        rows = [(g, ids) for g in groups for ids in g.completions]
        return {
            "prompt_ids": [g.prompt_ids for g, _ in rows],
            "completion_ids": [ids for _, ids in rows],
            "logprobs": None,
            "prompt_id": [g.prompt_id for g, _ in rows],
            "verdict": [v for g in groups for v in g.verdicts],
            "candidates": [self.taken - before] * len(rows),
        }

    def require_trained(self) -> None:
        """Hold TRL, and this sampler, to what dynamic sampling promises."""
        rewards = self.rewards
        asked = [p.prompt_id for p in self.plan.prompts[: self.taken]]
        assert rewards.sampled == asked, "candidates were sampled in another order"
        assert Counter(rewards.visited) <= Counter(asked), "TRL trained on no candidate"
        assert rewards.uninformative == self.uninformative_trained, (
            "TRL trained on groups without a gradient"
        )

    def _step(self, trainer: Any, size: int) -> list[SampledGroup]:
        """Sample until `size` informative groups are there, or as many as may be."""
        kept: list[SampledGroup] = []
        dropped: list[SampledGroup] = []
        end = self._end()
        for number in range(MAX_SAMPLING_ROUNDS):
            candidates = self.plan.prompts[self.taken : min(self.taken + size - len(kept), end)]
            if not candidates:
                break
            self.taken += len(candidates)
            for group in self._sample(trainer, candidates, number):
                (kept if informative(group.verdicts) else dropped).append(group)
        missing = size - len(kept)
        self.uninformative_trained += missing
        found = kept + dropped[len(dropped) - missing :]
        self.kept += [group.prompt_id for group in found]
        return found

    def _end(self) -> int:
        """Where this step's candidates end at the latest, so that every later step has its own."""
        size = self.plan.training.prompts_per_step
        later = self.plan.steps - len(self.kept) // size - 1
        return len(self.plan.prompts) - later * size

    def _sample(
        self, trainer: Any, candidates: Sequence[Prompt], number: int
    ) -> list[SampledGroup]:
        """Sample and judge a group for each candidate, from the policy as it now is.

        The seed is that of step and round, so a stage that is trained again repeats its responses.
        """
        plan, settings = self.plan, trainer.args
        model = trainer.accelerator.unwrap_model(trainer.model)
        # A new engine every time: one that copies the weights would sample from old ones.
        policy = replace(self.policy, model=model)
        engine = load_engine(plan.rollouts.engine, policy)
        sampling = Sampling(
            settings.temperature,
            settings.top_p,
            settings.top_k or 0,
            settings.max_completion_length,
        )
        seed = derive_seed(plan.seed, "dynamic", int(trainer.state.global_step), number)
        encoded = [list(self.encoded[p.prompt_id]) for p in candidates]
        with trainer.accelerator.autocast():
            sampled = engine.generate(encoded, sampling, plan.training.responses, seed)
        return self._judged(candidates, encoded, [[c.ids.tolist() for c in g] for g in sampled])

    def _judged(
        self,
        candidates: Sequence[Prompt],
        encoded: Sequence[list[int]],
        sampled: Sequence[list[list[int]]],
    ) -> list[SampledGroup]:
        """Judge all groups in one call."""
        names = [p.prompt_id for p, group in zip(candidates, sampled, strict=True) for _ in group]
        flat = [ids for group in sampled for ids in group]
        texts = self.policy.tokenizer.batch_decode(flat, skip_special_tokens=True)
        verdicts = iter(self.rewards.judged(names, texts, flat))
        return [
            SampledGroup(p.prompt_id, ids, group, [next(verdicts) for _ in group])
            for p, ids, group in zip(candidates, encoded, sampled, strict=True)
        ]
