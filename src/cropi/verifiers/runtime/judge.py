"""The judge: rewards for many responses, each by its source's verifier, in isolated workers.

A response that is judged has status "ok", whatever its reward. One that hangs its verifier past
the deadline is a "timeout", and one whose verifier raises, crashes or returns no finite number is
an "error"; neither is ever a reward of 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Literal

from cropi.errors import InputError
from cropi.plugins import resolve_name
from cropi.schema import Prompt
from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.settings import RewardTerm, VerifiersConfig
from cropi.verifiers.verdict import Job, Term, Verdict

Outcome = Literal["ok", "wrong", "timeout", "error"]


class Judge:
    """Judges responses; a context manager, for it owns processes.

    `counts[source][outcome]` counts all verdicts of `judge` so far, "wrong" apart from "ok": a
    reward of 0 or less, or below the config's threshold.
    """

    def __init__(self, config: VerifiersConfig, base: Path | None = None) -> None:
        """Resolve every verifier; files are looked up in the current directory, then in `base`.

        Raises InputError if a name is unknown or a file missing.
        """
        self._config = config
        self._folders = () if base is None else (base,)
        self._default = self._terms(config.default)
        self._patterns = {p: self._terms(f) for p, f in config.sources.items()}
        self._crew = WorkerPool(config.workers, config.timeout, self._folders)
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

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        self._crew.close()

    def terms(self, source: str) -> tuple[Term, ...]:
        """Return the functions and weights that judge a source: first matching pattern, or default.

        In a pattern `*` and `?` are wild; brackets stand for themselves.
        """
        for pattern, terms in self._patterns.items():
            if fnmatchcase(source, pattern.replace("[", "[[]")):
                return terms
        return self._default

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Try every source's verifier on one prompt, its own answer being the response.

        Raises InputError naming the source, the function and the error, if a verifier cannot be
        loaded, cannot read the answer, or returns no finite number in time.
        """
        samples: dict[str, Prompt] = {}
        for prompt in prompts:
            samples.setdefault(prompt.source, prompt)
        for source, prompt in samples.items():
            job = Job(self.terms(source), prompt, prompt.answer, (0,))
            try:
                self._crew.load(spec for spec, _ in job.terms)
            except InputError as error:
                raise InputError(f"source {source!r}: {error}") from None
            (verdict,) = self._crew.judge([job])
            if verdict.status != "ok":
                raise _unfit(job, verdict)

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        """Return one verdict for each (prompt, response text), in order.

        `token_ids` are the responses' ids, for functions that take TRL's `completion_ids`; without
        them such a function has status "error". Raises InputError if a verifier cannot be loaded.
        """
        ids = token_ids if token_ids is not None else [None] * len(items)
        jobs = [
            Job(self.terms(p.source), p, text, None if t is None else tuple(t))
            for (p, text), t in zip(items, ids, strict=True)
        ]
        verdicts = self._crew.judge(jobs)
        for job, verdict in zip(jobs, verdicts, strict=True):
            outcomes = self.counts.setdefault(job.prompt.source, Counter())
            outcomes[self.outcome(verdict)] += 1
        return verdicts

    def outcome(self, verdict: Verdict) -> Outcome:
        """Tell ok, wrong, timeout and error apart."""
        if verdict.status != "ok":
            return verdict.status
        threshold = self._config.threshold
        passed = verdict.reward > 0 if threshold is None else verdict.reward >= threshold
        return "ok" if passed else "wrong"

    def _terms(self, functions: str | list[RewardTerm]) -> tuple[Term, ...]:
        if isinstance(functions, str):
            return ((resolve_name("verifier", functions, self._folders), 1.0),)
        if not functions:
            raise InputError("verifiers: a list of reward terms is empty; name a function")
        return tuple(
            (resolve_name("verifier", t.function, self._folders), t.weight) for t in functions
        )


def _unfit(job: Job, verdict: Verdict) -> InputError:
    prompt = job.prompt
    names = " + ".join(spec for spec, _ in job.terms)
    mend = f"mend it or the answer, or set verifiers.sources.{prompt.source} to another verifier"
    if "reasoning_gym" in prompt.extra and names != "reasoning_gym":
        mend = f"set verifiers.sources.{prompt.source} to reasoning_gym"
    return InputError(
        f"source {prompt.source!r}: verifier {names!r} cannot judge prompt {prompt.prompt_id!r} "
        f"(answer {prompt.answer[:60]!r}): {verdict.detail}; {mend}"
    )
