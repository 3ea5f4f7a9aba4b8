"""Telling a disk that cannot be written from a defect, whichever library met it first."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def reraise_disk_errors() -> Iterator[None]:
    """Turn what safetensors and torch raise when a write fails into the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number)) from error
    except RuntimeError as error:
        # torch's zip writer keeps no error code: short of space is what it mostly means.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
