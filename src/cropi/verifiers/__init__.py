"""Verifiers: a reward for a response, computed outside the main process, with a deadline.

`Judge` is the entry point. Every built-in verifier is one file with one callable; the user's
functions come in TRL's or verl's signature. Importing this package loads neither torch nor
transformers, and the worker process that judges does not either.
"""

from typing import TYPE_CHECKING, Any

from cropi.verifiers.verdict import Verdict, Verifier

if TYPE_CHECKING:
    from cropi.verifiers.runtime.response_judge import Judge, open_judge

__all__ = ["Judge", "Verdict", "Verifier", "open_judge"]


def __getattr__(name: str) -> Any:
    # The worker imports this package too, and starts twice as fast without the judge's config.
    if name in ("Judge", "open_judge"):
        from cropi.verifiers.runtime import response_judge

        return getattr(response_judge, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
