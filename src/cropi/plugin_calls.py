"""Calls of a user's plug-in: whatever it raises ends as one sentence about the plug-in.

A strategy that raises or calls `sys.exit` is the user's to mend, and not a defect of cropi's: the
sentence names the plug-in, its function, the error and the line. The error itself stays attached,
for those who call cropi from Python.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cropi.errors import InputError
from cropi.text import shortened
from cropi.users_code import is_installed

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Errors that are the disk's, whoever meets them."""


class PluginError(InputError):
    """A plug-in, of this resolved name, raised or returned what cannot be used."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)  # all arguments: it may be pickled
        self.name = name

    def __str__(self) -> str:
        return str(self.args[1])

    @classmethod
    def of(cls, title: str, name: str, function: str, problem: str, remedy: str = "") -> Self:
        """What a function of a plug-in did wrong, and what it should do instead."""
        ending = f"; {remedy}" if remedy else ""
        return cls(name, f"{title} {name!r}: {function} {problem}{ending}")


@contextmanager
def calling(title: str, name: str, function: str) -> Iterator[None]:
    """Call a plug-in's function; raise PluginError for what a user's own raises.

    Interrupts, a full disk and an InputError, which says what it is about, come through; so does
    all that a built-in plug-in raises.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        if full or not is_users(name):
            raise
        problem = f"raised {reason_of(error)}"
        raise PluginError.of(title, name, function, problem, "correct it, and run again") from error


def is_users(name: str) -> bool:
    """Whether a plug-in's resolved name is that of a user's own."""
    return ":" in name


def reason_of(error: BaseException) -> str:
    """An error in one line, with the last line of the user's code that it went through."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  (a user's exception, whose text is code as well)
        text = ""
    text = shortened(" ".join(f"{type(error).__name__}: {text}".split()), 300).rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{text} (line {error.lineno or '?'})"
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [frame for frame in frames if not is_installed(Path(frame.filename))]
    # A plug-in that is installed itself is named by the line that raised.
    of_others = [f for f in frames if not Path(f.filename).is_relative_to(Path(__file__).parent)]
    last = (of_user or of_others)[-1:]
    return f"{text} (line {last[0].lineno} of {last[0].filename})" if last else text
