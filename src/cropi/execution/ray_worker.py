"""What runs in a worker that Ray has started."""

from __future__ import annotations

import gc
import os
import pickle
import platform
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: a value or an error, how long it took, and what was warned of.

    `place` is the file and the line that raised the error.
    """

    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    node: str = ""
    place: str = ""


class Worker:
    """A process that runs units, one after the other; Ray makes an actor of it.

    Relative paths mean what they mean in the process that sends the units: they share a folder.
    """

    def __init__(self, folder: str, path: Sequence[str]) -> None:
        os.chdir(folder)
        sys.path += [each for each in path if each not in sys.path]
        self._key, self._shared = "", None

    def version(self) -> str:
        """The version of cropi here; the first call returns when the worker is ready."""
        from cropi import __version__

        return __version__

    def run(self, pickled: bytes, shared: Sequence[Any]) -> Outcome:
        """Run a pickled unit. `shared` is empty, or what it shares: a key, and where Ray has it."""
        from cropi.execution.packing import picklable_error
        from cropi.execution.units import call

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            try:
                unit = pickle.loads(pickled)
                if shared:
                    unit = replace(unit, shared=self._object(*shared))
                value, seconds = call(unit)
                outcome = Outcome(value, seconds=seconds)
            except Exception as error:  # noqa: BLE001  (reported by name)
                outcome = Outcome(error=picklable_error(error), place=_place(error))
        texts = tuple(dict.fromkeys(str(each.message) for each in caught if _is_for_users(each)))
        return replace(outcome, warnings=texts, node=platform.node())

    def forget(self) -> None:
        """Free what units shared, such as a model."""
        self._key, self._shared = "", None
        gc.collect()

    def _object(self, key: str, reference: Any) -> Any:
        """What units share, fetched once and kept until another one is asked for."""
        if self._key != key:
            import ray

            self._shared = None  # the last one may hold a model
            self._shared = pickle.loads(ray.get(reference))
            self._key = key
        return self._shared


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _is_for_users(caught: warnings.WarningMessage) -> bool:
    return issubclass(caught.category, UserWarning)
