"""The process in which verifiers run: it may hang, crash or print without ending the run.

It reads messages from its standard input and answers on its standard output, through duplicates of
the two; the originals are redirected, so that neither `print` nor `input` of a user's function
touches the pipes. It exits when the judge is gone.
"""

from __future__ import annotations

import faulthandler
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cropi.errors import InputError
from cropi.schema import MAX_REWARD
from cropi.verifiers.runtime.channel import read_job_message, reply_frame, write_all
from cropi.verifiers.tags import Tags
from cropi.verifiers.user import find_verifier
from cropi.verifiers.verdict import (
    AnswerChecker,
    GroupVerifier,
    Job,
    NotApplicableError,
    Verifier,
)

LOAD_SECONDS = 120.0
DETAIL_LENGTH = 500
OUT_OF_MEMORY = 113
"""Exit code of a process out of memory: what a leak has left would fail the next response."""

Reply = tuple[Literal["ok", "error"], float, str]


def main(
    timeout: float, memory_gb: float | None, think: Sequence[str] = (), answer: Sequence[str] = ()
) -> None:
    """Serve the judge until it closes the pipe.

    `timeout` is its limit per response in seconds, `memory_gb` that of this process in GiB of
    address space; `think` and `answer` are its tags.
    """
    _limit_memory(memory_gb)
    inbound, outbound = _private_pipes()
    with open(os.devnull, "w") as devnull:
        try:
            _serve(
                inbound, outbound, _OrphanGuard(timeout, devnull), Tags(tuple(think), tuple(answer))
            )
        except (EOFError, BrokenPipeError):
            sys.stdout.flush()
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        # A thread that a user's function left behind must not keep the process alive.
        os._exit(0)


def _limit_memory(memory_gb: float | None) -> None:
    if memory_gb is not None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = int(memory_gb * 2**30)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _serve(inbound: int, outbound: int, guard: _OrphanGuard, tags: Tags) -> None:
    """Answer messages. Raises EOFError or BrokenPipeError without a judge, or MemoryError."""
    loaded: dict[str, Verifier] = {}
    while True:
        kind, content = read_job_message(inbound)
        if kind == "load":
            guard.arm(LOAD_SECONDS)
            write_all(outbound, reply_frame(_load(content, loaded, tags)))
        else:
            _judge_all(content, loaded, outbound, guard)
        guard.disarm()


def _private_pipes() -> tuple[int, int]:
    """Hide the pipes from user code, which reads from nothing and prints to stderr."""
    inbound, outbound = os.dup(0), os.dup(1)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)
    os.dup2(2, 1)
    return inbound, outbound


class _OrphanGuard:
    """Ends the process if it hangs after the judge died, when nothing else would kill it.

    faulthandler's watchdog is a C thread: it also works while a long computation holds the GIL.
    Arming it costs most of a millisecond, so that is done at most once per second.
    """

    def __init__(self, timeout: float, devnull: Any) -> None:
        self._default = 2 * timeout + 5
        self._devnull = devnull
        self._armed = -math.inf

    def arm(self, seconds: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._armed > 1.0:
            self._armed = now
            longest = max(seconds, self._default)
            faulthandler.dump_traceback_later(longest, exit=True, file=self._devnull)

    def disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = -math.inf


def _load(spec: str, loaded: dict[str, Verifier], tags: Tags) -> tuple[str, bool]:
    """Load a verifier; return why it cannot be loaded, and whether it sees whole groups."""
    try:
        loaded[spec] = find_verifier(spec, tags)
    except InputError as error:
        return str(error), False
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's module runs here)
        return (
            f"verifier {spec!r} cannot be loaded: {_reason(error)}; fix the file or the name",
            False,
        )
    return "", isinstance(loaded[spec], GroupVerifier)


def _judge_all(
    jobs: Sequence[Job], loaded: dict[str, Verifier], outbound: int, guard: _OrphanGuard
) -> None:
    """Answer each job as soon as it is judged, so that the judge can tell which one hangs."""
    process = os.getpid()
    for job in jobs:
        guard.arm()
        replies = _judge(job, loaded)
        if os.getpid() != process:  # a function has forked, and this copy must not answer too
            os._exit(0)
        write_all(outbound, reply_frame(replies))


def _judge(job: Job, loaded: dict[str, Verifier]) -> list[Reply]:
    """Return, for each response, the weighted sum of all functions that apply to it."""
    if job.check:
        return [_check(job, loaded)]
    terms = []
    for spec, weight in job.rewards:
        name = spec if len(job.rewards) > 1 else ""
        terms.append([_term(r, weight, name) for r in _rewards(loaded[spec], job)])
    return [_sum([term[n] for term in terms]) for n in range(len(job.completions))]


@dataclass(frozen=True, slots=True)
class _Term:
    """A function's weighted reward for a response; without one, why, and whether it applies."""

    value: float = math.nan
    why: str = ""
    applies: bool = True


def _term(reward: float | BaseException, weight: float, name: str) -> _Term:
    if isinstance(reward, BaseException):
        return _Term(why=_reason(reward, name), applies=not isinstance(reward, NotApplicableError))
    if not math.isfinite(reward):
        error = ValueError(f"the reward is {reward}, not a finite number")
        return _Term(why=_reason(error, name))
    if abs(reward) > MAX_REWARD:
        error = ValueError(f"the reward {reward} is beyond {MAX_REWARD:.0e}")
        return _Term(why=_reason(error, name))
    return _Term(weight * reward)


def _sum(terms: Sequence[_Term]) -> Reply:
    """Return the sum of the terms that apply; an error if one of them failed or none applies."""
    applying = [t for t in terms if t.applies]
    failed = [t.why for t in applying if t.why]
    if failed or not applying:
        return "error", math.nan, failed[0] if failed else terms[-1].why
    total = sum(t.value for t in applying)
    if abs(total) <= MAX_REWARD:
        return "ok", total, ""
    return (
        "error",
        math.nan,
        f"the weighted sum of the rewards, {total}, is beyond {MAX_REWARD:.0e}",
    )


def _rewards(verifier: Verifier, job: Job) -> Sequence[float | BaseException]:
    """Return a verifier's reward for each response, or what it raised."""
    try:
        if isinstance(verifier, GroupVerifier):
            return verifier.judge_group(job)
        return [verifier(job.prompt, completion) for completion in job.completions]
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001  (a user's function runs here)
        return [error] * len(job.completions)


def _check(job: Job, loaded: dict[str, Verifier]) -> Reply:
    """Return an error if a function says that it cannot read the job's answer."""
    for spec, _ in job.rewards:
        verifier = loaded[spec]
        if isinstance(verifier, AnswerChecker):
            try:
                verifier.check_answer(job.prompt)
            except ValueError as error:
                return "error", math.nan, str(error)[:DETAIL_LENGTH]
    return "ok", 0.0, ""


def _reason(error: BaseException, spec: str = "") -> str:
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # noqa: BLE001  (a user's exception, whose text is code as well)
        text = type(error).__name__
    return (f"{spec}: {text}" if spec else text)[:DETAIL_LENGTH]
