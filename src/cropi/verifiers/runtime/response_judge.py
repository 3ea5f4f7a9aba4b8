"""The judge: rewards for many responses, each by its source's verifier, in isolated workers.

A response that was judged has status "ok", whatever its reward. If its verifier exceeds the
deadline the status is "timeout", and if its verifier raises, crashes or returns no finite number
it is "error"; neither counts as a reward of 0.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from cropi.errors import InputError
from cropi.plugins import code_of, resolve_name
from cropi.schema import Prompt
from cropi.settings import given_or_default
from cropi.text import shown
from cropi.verifiers.runtime.groups import as_jobs, judge_jobs
from cropi.verifiers.runtime.pool import WorkerPool
from cropi.verifiers.settings import RewardTerm, VerifiersConfig
from cropi.verifiers.statement import gold_statement
from cropi.verifiers.tags import Tags
from cropi.verifiers.verdict import Job, Tally, Verdict, WeightedReward

Outcome = Literal["ok", "wrong", "timeout", "error"]
PROMPTS_TRIED = 4
"""Prompts of a source on which its verifier is tried before all the work."""


class Judge:
    """Judges responses; a context manager, because it owns processes.

    `counts[source][outcome]` counts all verdicts of `judge` so far; "wrong" means a reward of 0 or
    less, or below the config's threshold. `reasons` counts why responses were not judged. `step` is
    what functions find as the trainer's step.
    """

    def __init__(self, config: VerifiersConfig, base: Path | None = None) -> None:
        """Resolve every verifier; files are looked up in the current directory, then in `base`.

        Raises InputError if a name is unknown or a file missing.
        """
        self._config = config
        self._folders = () if base is None else (base,)
        self._default = self._resolve(config.default)
        self._patterns = {p: self._resolve(f) for p, f in config.sources.items()}
        tags = Tags(tuple(config.think_tags), tuple(config.answer_tags))
        self._pool = WorkerPool(
            config.workers, config.timeout, self._folders, tags, config.memory_gb
        )
        self.counts: dict[str, Counter[Outcome]] = {}
        self.reasons: Counter[str] = Counter()
        self.step = 0
        self._is_copy = False
        self._columns: dict[str, None] = {}

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

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where it looks for verifiers' files, beside the current directory."""
        return self._folders

    @property
    def code(self) -> list[str]:
        """Hashes of the files that define functions of the user's."""
        rewards = [*self._default, *(each for some in self._patterns.values() for each in some)]
        return sorted({code for name, _ in rewards if (code := code_of("verifier", name))})

    def add(self, counts: Mapping[str, Mapping[Outcome, int]], reasons: Mapping[str, int]) -> None:
        """Count what a judge in another process has judged."""
        for source, outcomes in counts.items():
            self.counts.setdefault(source, Counter()).update(outcomes)
        self.reasons.update(reasons)

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
        """Try every source's verifier on one prompt and every answer, before anything is sampled.

        Raises InputError naming the source, the function and the error, if a verifier cannot be
        loaded, or returns no finite number in time for an answer as the response; and listing the
        prompts whose answers cannot be read.
        """
        unreadable = self.unreadable(prompts)
        if unreadable:
            raise _unreadable_error(prompts, unreadable)

    def readable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return the prompts whose answers can be read, after a check of every source's verifier.

        Raises InputError as `check` does; unreadable answers are an error only if the settings say
        so, or if nothing is left.
        """
        unreadable, may_drop = self.unreadable(prompts), self._config.unreadable == "drop"
        if unreadable and not (may_drop and len(unreadable) < len(prompts)):
            raise _unreadable_error(prompts, unreadable)
        return [p for i, p in enumerate(prompts) if i not in unreadable]

    def unreadable(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        """Return why answers cannot be read, by the prompt's place, after a check of verifiers.

        Raises InputError if a verifier cannot be loaded, or cannot judge.
        """
        self._load([p.source for p in prompts])
        self._columns.update(dict.fromkeys(name for p in prompts for name in p.extra))
        jobs = [Job(self.rewards_of(p.source), p, ("",), check=True) for p in prompts]
        verdicts = [verdict for (verdict,) in self._pool.judge(jobs)]
        unreadable = {i: v.detail for i, v in enumerate(verdicts) if v.status != "ok"}
        self._try([p for i, p in enumerate(prompts) if i not in unreadable])
        return unreadable

    def _load(self, sources: Sequence[str]) -> None:
        """Load the sources' verifiers. Raises InputError if one cannot be loaded."""
        for source in dict.fromkeys(sources):
            try:
                self._pool.load(spec for spec, _ in self.rewards_of(source))
            except InputError as error:
                raise InputError(f"source {source!r}: {error}") from None

    def _try(self, prompts: Sequence[Prompt]) -> None:
        """Judge prompts of every source until one gets a reward.

        A function in TRL's signature may not apply to the first ones. Raises InputError with what
        went wrong at the first if none of PROMPTS_TRIED prompts gets a reward.
        """
        samples: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            samples.setdefault(prompt.source, []).append(prompt)
        for sample in samples.values():
            self._try_source(
                [self._job(each, each.answer, (0,)) for each in sample[:PROMPTS_TRIED]]
            )

    def _try_source(self, jobs: Sequence[Job]) -> None:
        first: Verdict | None = None
        for job in jobs:
            ((verdict,),) = self._pool.judge([job])
            if verdict.status == "ok":
                return
            first = first or verdict
        if first is not None:
            raise _cannot_judge(jobs[0], first)

    def judge(
        self,
        items: Sequence[tuple[Prompt, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        """Return one verdict per (prompt, response text), in order.

        Neighbours that answer one prompt are a group, which functions in TRL's signature or verl's
        for batches see as a whole. `token_ids` are the responses' ids, for functions that take
        TRL's `completion_ids`; without them such a function gives status "error".

        Raises InputError if a verifier cannot be loaded.
        """
        ids = token_ids if token_ids is not None else [None] * len(items)
        self._columns.update(dict.fromkeys(name for p, _ in items for name in p.extra))
        jobs = [self._job(p, text, i) for (p, text), i in zip(items, ids, strict=True)]
        if not jobs:
            return []
        whole = self._pool.load({name: None for job in jobs for name, _ in job.rewards})
        verdicts = judge_jobs(self._pool, as_jobs(jobs, whole))
        for job, verdict in zip(jobs, verdicts, strict=True):
            self.count(job.prompt.source, verdict)
        return verdicts

    def _job(self, prompt: Prompt, text: str, ids: Sequence[int] | None) -> Job:
        """Return the job of one response."""
        absent = tuple(name for name in self._columns if name not in prompt.extra)
        token_ids = None if ids is None else (tuple(ids),)
        return Job(self.rewards_of(prompt.source), prompt, (text,), token_ids, self.step, absent)

    def count(self, source: str, verdict: Verdict) -> None:
        """Count a verdict, which may have been given in another process."""
        self.counts.setdefault(source, Counter())[self.outcome(verdict)] += 1
        if verdict.status != "ok":
            why = f"{verdict.status}: {verdict.detail}"
            full = len(self.reasons) >= MOST_REASONS and why not in self.reasons
            self.reasons[f"{verdict.status}: other reasons" if full else why] += 1

    def unjudged(self) -> str:
        """Return in one sentence how many responses were not judged so far, and why; else ""."""
        return unjudged(self.reasons, sum(sum(c.values()) for c in self.counts.values()))

    def outcome(self, verdict: Verdict) -> Outcome:
        """Return the outcome to count a verdict under."""
        if verdict.status != "ok":
            return verdict.status
        threshold = self._config.threshold
        passed = verdict.reward > 0 if threshold is None else verdict.reward >= threshold
        return "ok" if passed else "wrong"

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process, which counts for itself."""
        return {**self.__dict__, "counts": {}, "reasons": Counter(), "_is_copy": True}

    def tally(self) -> Tally | None:
        """What a copy in another process has counted since the last call; None of the original."""
        if not self._is_copy:
            return None
        tally = Tally(self.counts, self.reasons)
        self.counts, self.reasons = {}, Counter()
        return tally

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
    if inspect.isfunction(verifier):
        raise InputError(
            f"verifier is the function {verifier.__name__}, and processes that judge load it "
            f'from a file; give its place as text, "FILE.py:{verifier.__name__}"'
        )
    settings = VerifiersConfig(default=verifier) if isinstance(verifier, str) else verifier
    with Judge(given_or_default(settings, VerifiersConfig, "verifier")) as judge:
        yield judge


LISTED_ANSWERS = 5
MOST_REASONS = 1000
"""Reasons that are counted one by one: messages may hold what a response says."""
LISTED_REASONS = 5


def unjudged(reasons: Counter[str], responses: int) -> str:
    """Return in one sentence how many of the responses were not judged, by reason; else ""."""
    if not reasons:
        return ""
    listed = [f"{count:,} {why}" for why, count in reasons.most_common(LISTED_REASONS)]
    others = len(reasons) - len(listed)
    more = [f"and {others:,} other reasons"] if others else []
    total = sum(reasons.values())
    return f"{total:,} of {responses:,} responses were not judged: {'; '.join(listed + more)}"


def _unreadable_error(prompts: Sequence[Prompt], unreadable: dict[int, str]) -> InputError:
    """Return the error that lists prompts with unreadable answers."""
    lines = [
        f"source {prompts[i].source!r}, prompt {prompts[i].prompt_id!r}: {why}"
        for i, why in list(unreadable.items())[:LISTED_ANSWERS]
    ]
    more = (
        [f"and {len(unreadable) - LISTED_ANSWERS} more"] if len(unreadable) > LISTED_ANSWERS else []
    )
    count = f"{len(unreadable)} of {len(prompts)} answers cannot be read"
    fix = (
        "fix the rows, name another verifier with verifiers.sources, or leave them out "
        "(verifiers.unreadable=drop)"
    )
    return InputError(f"{count}: {'; '.join([*lines, *more])}; {fix}")


def _cannot_judge(job: Job, verdict: Verdict) -> InputError:
    prompt = job.prompt
    names = " + ".join(spec for spec, _ in job.rewards)
    fix = "fix it or the answer, or name another verifier with verifiers.sources"
    if "reasoning_gym" in prompt.extra and names != "reasoning_gym":
        fix = f"name reasoning_gym for the source {prompt.source} with verifiers.sources"
    elif (gold := gold_statement(prompt.answer)) != prompt.answer.strip():
        pick = ": '#### (.+)'" if "####" in prompt.answer else ""
        fix = f"give it {shown(gold, 40)} alone with `answer_regex{pick}`, or {fix}"
    return InputError(
        f"source {prompt.source!r}: verifier {names!r} cannot judge prompt {prompt.prompt_id!r} "
        f"(answer {prompt.answer[:60]!r}): {verdict.detail}; {fix}"
    )
