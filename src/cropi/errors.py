"""The one exception class that means "your input, not our bug".

The command line turns an `InputError` into one sentence on stderr and exit code 2; every other
exception keeps its traceback, because it is a defect worth a report.
"""

from __future__ import annotations

import sys


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the value, what is allowed and how to fix it, in one sentence.
    """


def require_supported_system() -> None:
    """Raise InputError on Windows, which lacks the locks and process signals that runs rely on."""
    if sys.platform.startswith("win"):
        raise InputError("cropi runs on Linux and macOS; on Windows, use it inside WSL 2")
