"""From completions to judged groups, the rows of a rollout file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropi.policy.reference import PolicyRef, named_anywhere
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.recomputed_logprobs import with_logprobs
from cropi.schema import Prompt, Response, RolloutGroup, Sampling
from cropi.verifiers.verdict import Grader, Verdict


@dataclass(frozen=True)
class SamplingPlan:
    """How a collection is sampled: `responses` per prompt, drawn as `sampling` says.

    Chunk i draws from `derive_seed(seed, "chunk", i)` and has `chunk_prompts` prompts, which are
    saved together. `template_kwargs` are arguments of the chat template.
    """

    sampling: Sampling
    responses: int
    seed: int
    template_kwargs: Mapping[str, Any] | None = None
    chunk_prompts: int = 128


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Prompts with their token ids, who judges their responses, and how they are sampled."""

    policy: PolicyRef
    prompts: Sequence[Prompt]
    encoded: Sequence[Sequence[int]]
    judge: Grader
    plan: SamplingPlan

    def judged(
        self, members: Sequence[int], sampled: Sequence[Sequence[Completion]]
    ) -> list[RolloutGroup]:
        """Judge what was sampled for the prompts at these positions; return their groups.

        Log-probs of responses that came as text are recomputed.
        """
        prompts = [self.prompts[m] for m in members]
        judged = judge_completions(self.judge, self.policy.tokenizer, prompts, sampled)
        groups = [
            self._group(member, completions, group)
            for member, completions, group in zip(members, sampled, judged, strict=True)
        ]
        if all(group.exact for group in groups):
            return groups
        return with_logprobs(self.policy.load().model, groups)

    def _group(
        self,
        member: int,
        completions: Sequence[Completion],
        judged: Sequence[tuple[Completion, str, Verdict]],
    ) -> RolloutGroup:
        (mode,) = {completion.logprob_mode for completion in completions}
        return RolloutGroup(
            prompt_id=self.prompts[member].prompt_id,
            prompt_ids=np.array(self.encoded[member], dtype=np.int32),
            responses=[_response(*outcome) for outcome in judged],
            sampling=self.plan.sampling,
            policy=named_anywhere(self.policy.identity),
            seed=self.plan.seed,
            exact=all(completion.exact for completion in completions),
            logprob_mode=mode,
        )


def judge_completions(
    judge: Grader,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampled: Sequence[Sequence[Completion]],
) -> list[list[tuple[Completion, str, Verdict]]]:
    """Return every completion with its text and verdict, by prompt; all are judged in one call.

    Verifiers read the text without EOS and other special tokens.
    """
    flat = [completion for group in sampled for completion in group]
    prompt_of = [prompt for prompt, group in zip(prompts, sampled, strict=True) for _ in group]
    ids = [completion.ids.tolist() for completion in flat]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    verdicts = judge.judge(list(zip(prompt_of, texts, strict=True)), ids)
    judged = iter(list(zip(flat, texts, verdicts, strict=True)))
    return [[next(judged) for _ in group] for group in sampled]


def _response(completion: Completion, text: str, verdict: Verdict) -> Response:
    """Return the response with its reward, NaN unless the verdict is ok."""
    return Response(
        ids=completion.ids,
        logprobs=completion.logprobs,
        text=text,
        finish_reason=completion.finish_reason,
        reward=float(verdict.reward) if verdict.status == "ok" else float("nan"),
        reward_status=verdict.status,
    )
