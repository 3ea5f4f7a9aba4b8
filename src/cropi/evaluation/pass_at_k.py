"""Evaluation: pass@1 and pass@k of a policy on any number of sets, in one generation pass.

A curve needs an evaluation every few steps, so the prompts are encoded once (`EvaluationSets`) and
all sets share their batches. A response that could not be judged is not a wrong answer: it leaves
the mean and is counted by status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cropi.arguments import PROMPTS_FIX, require_by_name, require_list_of
from cropi.errors import InputError
from cropi.evaluation.settings import EvaluationConfig
from cropi.policy.reference import PolicyRef
from cropi.prompts.encoding import encode_all
from cropi.rollouts.checked_engine import load_engine
from cropi.rollouts.engines.engine import Completion, RolloutEngine, require_context
from cropi.rollouts.judged_groups import judge_completions
from cropi.rollouts.settings import RolloutsConfig
from cropi.rollouts.statistics import as_passes
from cropi.schema import EvaluationResult, Prompt, Sampling
from cropi.settings import given_or_default
from cropi.short_repr import ShortRepr
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Grader, Verdict

if TYPE_CHECKING:
    from cropi.policy.loading import Policy
    from cropi.verifiers import Judge


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationSets(ShortRepr):
    """Named sets of prompts with their token ids, ready to be evaluated again and again."""

    names: list[str]
    prompts: list[list[Prompt]]
    encoded: list[list[list[int]]]
    tokenizer: Any

    @classmethod
    def prepare(
        cls,
        tokenizer: Any,
        sets: Mapping[str, Sequence[Prompt]],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> EvaluationSets:
        """Encode every prompt once.

        Raises InputError if there are no sets, or one has no prompts.
        """
        require_by_name(sets, "sets", '{"test": cropi.load_prompts("test.jsonl")}')
        for name, prompts in sets.items():
            require_list_of(prompts, Prompt, f"set {name}", PROMPTS_FIX)
            if not prompts:
                raise InputError(f"evaluation set {name} has no prompts; give it some or remove it")
        encoded = [encode_all(tokenizer, prompts, template_kwargs) for prompts in sets.values()]
        return cls(list(sets), [list(prompts) for prompts in sets.values()], encoded, tokenizer)

    def prompt_tokens(self, name: str) -> int:
        """Return the length of a set's prompts, in tokens."""
        return sum(map(len, self.encoded[self.names.index(name)]))

    def evaluate(
        self,
        engine: RolloutEngine,
        judge: Grader,
        sampling: Sampling,
        samples: int,
        k: Sequence[int],
        seed: int,
        threshold: float | None = None,
    ) -> list[EvaluationResult]:
        """Return one result per set, from responses that `engine` samples; see `evaluate`."""
        _require_samples(samples, k)
        prompts = [prompt for group in self.prompts for prompt in group]
        encoded = [ids for group in self.encoded for ids in group]
        named = [(prompt.prompt_id, ids) for prompt, ids in zip(prompts, encoded, strict=True)]
        require_context(named, sampling.max_new_tokens, engine.context)
        sampled = engine.generate(encoded, sampling, samples, seed)
        judged = judge_completions(judge, self.tokenizer, prompts, sampled)
        results, start = [], 0
        for name, members in zip(self.names, self.prompts, strict=True):
            place = slice(start, start + len(members))
            results.append(_result(name, judged[place], k, threshold))
            start += len(members)
        return results


def evaluate(
    policy: Policy | PolicyRef | str | Path,
    sets: Mapping[str, Sequence[Prompt]] | EvaluationSets,
    settings: EvaluationConfig | None = None,
    *,
    rollouts: RolloutsConfig | None = None,
    verifier: str | VerifiersConfig | Judge | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[EvaluationResult]:
    """Accuracy of a policy on named sets of prompts.

    `pass_at[k]` is the mean over prompts of the unbiased estimate from `settings.responses`
    responses each; with graded rewards and no threshold, of the expected best of k. Timeouts and
    errors are counted in `statuses` and left out of the mean; so is a prompt with fewer than k
    judged responses. pass@k is NaN if no prompt is left. `tokens` counts sampled tokens.

    Args:
        policy: a loaded policy, a reference, or a path, hub id or built-in name.
        sets: prompts by the name of their set, or sets that are encoded already.
        settings: responses per prompt, temperature and k; a temperature of 0 is greedy decoding.
        rollouts: the engine that samples, and the length limit where `settings` has none.
        verifier: a verifier's name, settings, or an open judge that has checked the prompts.
        template_kwargs: arguments of the chat template.
        seed: of the sampling.

    Raises:
        InputError: a set is empty, a k exceeds the responses, or a prompt exceeds the context.
    """
    from cropi.verifiers import Judge, open_judge

    settings = given_or_default(settings, EvaluationConfig, "settings")
    rollouts = given_or_default(rollouts, RolloutsConfig, "rollouts")
    reference = PolicyRef.of(policy)
    if not isinstance(sets, EvaluationSets):
        sets = EvaluationSets.prepare(reference.tokenizer, sets, template_kwargs)
    new_tokens = settings.max_new_tokens or rollouts.max_new_tokens
    with open_judge(verifier) as judge:
        if not isinstance(verifier, Judge):
            judge.check([prompt for prompts in sets.prompts for prompt in prompts])
        return sets.evaluate(
            load_engine(settings.engine or rollouts.engine, reference),
            judge,
            Sampling(settings.temperature, settings.top_p, 0, new_tokens),
            settings.responses,
            settings.k,
            seed,
            judge.settings.threshold,
        )


def best_of(rewards: NDArray[np.float64], k: int) -> float:
    """Return the unbiased estimate of the expected best reward among k responses.

    With r_1 <= ... <= r_n it is sum_i r_i C(i-1, k-1) / C(n, k): the share of k-subsets in which
    r_i is the best. For rewards of 0 and 1 that is pass@k, 1 - C(n-c, k) / C(n, k) with c passes
    (Chen et al., arXiv 2107.03374, eq. 1); for k = 1 it is the mean. NaN if n < k.
    """
    n = len(rewards)
    if n < k:
        return float("nan")
    ordered, subsets = np.sort(rewards).tolist(), comb(n, k)
    # Exact integers first: the binomials overflow floats long before their ratio does.
    return float(sum(r * (comb(i, k - 1) / subsets) for i, r in enumerate(ordered) if r))


def _require_samples(samples: int, k: Sequence[int]) -> None:
    """Raise InputError unless pass@k can be estimated for every k."""
    if not k or min(k) < 1 or max(k) > samples:
        raise InputError(
            f"evaluation.k {list(k)} needs values from 1 to evaluation.responses ({samples}); "
            "lower k or raise evaluation.responses"
        )


def _result(
    name: str,
    judged: Sequence[Sequence[tuple[Completion, str, Verdict]]],
    k: Sequence[int],
    threshold: float | None,
) -> EvaluationResult:
    """Sum up one set."""
    rewards = [
        as_passes(np.array([v.reward for *_, v in group if v.status == "ok"], float), threshold)
        for group in judged
    ]
    return EvaluationResult(
        set=name,
        prompts=len(judged),
        pass_at={each: _mean([best_of(r, each) for r in rewards]) for each in k},
        tokens=sum(len(completion.ids) for group in judged for completion, *_ in group),
        statuses=dict(Counter(v.status for group in judged for *_, v in group)),
    )


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = [value for value in values if value == value]
    return float(np.mean(numbers)) if numbers else float("nan")
