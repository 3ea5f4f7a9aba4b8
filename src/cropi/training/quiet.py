"""Keeping the training libraries' chatter away from a person who watches a run."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import datasets
import transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' advice and dictionaries off the terminal; errors still raise."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.utils.logging.set_verbosity(verbosity)
            transformers.utils.logging.enable_progress_bar()
            if not silent:
                datasets.enable_progress_bars()
