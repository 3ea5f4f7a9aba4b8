"""What the training libraries print, and how they report failed writes."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import datasets
import transformers
from safetensors import SafetensorError


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, advice and log rows off the terminal; errors are still raised."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    had_no_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.utils.logging.set_verbosity(verbosity)
            transformers.utils.logging.enable_progress_bar()
            if not had_no_bars:
                datasets.enable_progress_bars()


@contextmanager
def reraise_disk_errors() -> Iterator[None]:
    """Convert failed writes, as safetensors and torch report them, into OSError."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        number = int(code.group(1))
        raise OSError(number, os.strerror(number)) from error
    except RuntimeError as error:
        # torch's zip writer keeps no error code; mostly the disk is full.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
