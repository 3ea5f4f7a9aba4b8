"""The judge: rewards for many responses, each by its source's verifier, in isolated workers.

A response that was judged has status "ok", whatever its reward. If its verifier exceeds the
deadline the status is "timeout", and if its verifier raises, crashes or returns no finite number
it is "error"; neither counts as a reward of 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Literal

from cropi.errors import InputError
from cropi.plugins import resolve_name
from cropi.schema import Prompt
from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.settings import RewardTerm, VerifiersConfig
from cropi.verifiers.verdict import Job, Verdict, WeightedReward

Outcome = Literal["ok", "wrong", "timeout", "error"]


class Judge:
    """Judges responses; a context manager, because it owns processes.

    `counts[source][outcome]` counts all verdicts of `judge` so far; "wrong" means a reward of 0 or
    less, or below the config's threshold.
    """

    def __init__(self, config: VerifiersConfig, base: Path | None = None) -> None:
        """Resolve every verifier; files are looked up in the current directory, then in `base`.

        Raises InputError if a name is unknown or a file missing.
        """
        self._config = config
        self._folders = () if base is None else (base,)
        self._default = self._resolve(config.default)
        self._patterns = {p: self._resolve(f) for p, f in config.sources.items()}
        self._pool = WorkerPool(config.workers, config.timeout, self._folders)
        self.counts: dict[str, Counter[Outcome]] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def settings(self) -> VerifiersConfig:
        """The settings that it judges by."""
        return self._config

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        self._pool.close()

    def rewards_of(self, source: str) -> tuple[WeightedReward, ...]:
        """Return a source's verifiers and weights: the first matching pattern's, or the default.

        In a pattern `*` and `?` are wildcards; brackets are ordinary characters.
        """
        for pattern, rewards in self._patterns.items():
            if fnmatchcase(source, pattern.replace("[", "[[]")):
                return rewards
        return self._default

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Try every source's verifier on one prompt, with its answer as the response.

        Raises InputError naming the source, the function and the error, if a verifier cannot be
        loaded, cannot read the answer, or returns no finite number in time.
        """
        samples: dict[str, Prompt] = {}
        for prompt in prompts:
            samples.setdefault(prompt.source, prompt)
        for source, prompt in samples.items():
            job = Job(self.rewards_of(source), prompt, prompt.answer, (0,))
            try:
                self._pool.load(spec for spec, _ in job.rewards)
            except InputError as error:
                raise InputError(f"source {source!r}: {error}") from None
            (verdict,) = self._pool.judge([job])
            if verdict.status != "ok":
                raise _cannot_judge(job, verdict)

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        """Return one verdict per (prompt, response text), in order.

        `token_ids` are the responses' ids, for functions that take TRL's `completion_ids`; without
        them such a function gives status "error". Raises InputError if a verifier cannot be loaded.
        """
        ids = token_ids if token_ids is not None else [None] * len(items)
        jobs = [
            Job(self.rewards_of(p.source), p, text, None if t is None else tuple(t))
            for (p, text), t in zip(items, ids, strict=True)
        ]
        verdicts = self._pool.judge(jobs)
        for job, verdict in zip(jobs, verdicts, strict=True):
            outcomes = self.counts.setdefault(job.prompt.source, Counter())
            outcomes[self.outcome(verdict)] += 1
        return verdicts

    def outcome(self, verdict: Verdict) -> Outcome:
        """Return the outcome to count a verdict under."""
        if verdict.status != "ok":
            return verdict.status
        threshold = self._config.threshold
        passed = verdict.reward > 0 if threshold is None else verdict.reward >= threshold
        return "ok" if passed else "wrong"

    def _resolve(self, functions: str | list[RewardTerm]) -> tuple[WeightedReward, ...]:
        if isinstance(functions, str):
            return ((resolve_name("verifier", functions, self._folders), 1.0),)
        if not functions:
            raise InputError("verifiers: a list of reward terms is empty; name a function")
        return tuple(
            (resolve_name("verifier", t.function, self._folders), t.weight) for t in functions
        )


@contextmanager
def open_judge(verifier: str | VerifiersConfig | Judge | None = None) -> Iterator[Judge]:
    """Yield a judge as it is, or one of these settings that is closed afterwards.

    A text names the default verifier.
    """
    if isinstance(verifier, Judge):
        yield verifier
        return
    settings = VerifiersConfig(default=verifier) if isinstance(verifier, str) else verifier
    with Judge(settings or VerifiersConfig()) as judge:
        yield judge


def _cannot_judge(job: Job, verdict: Verdict) -> InputError:
    prompt = job.prompt
    names = " + ".join(spec for spec, _ in job.rewards)
    fix = f"fix it or the answer, or set verifiers.sources.{prompt.source} to another verifier"
    if "reasoning_gym" in prompt.extra and names != "reasoning_gym":
        fix = f"set verifiers.sources.{prompt.source} to reasoning_gym"
    return InputError(
        f"source {prompt.source!r}: verifier {names!r} cannot judge prompt {prompt.prompt_id!r} "
        f"(answer {prompt.answer[:60]!r}): {verdict.detail}; {fix}"
    )
