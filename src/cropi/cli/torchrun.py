"""What torchrun tells a command: which process it is, of how many that work together."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

FIRST_FAILS_WITHIN_S = 30.0
"""Seconds within which torchrun ends the other processes when one has failed."""


@dataclass(frozen=True)
class Launch:
    """Process `rank` of `size`. The first one speaks and writes; the others compute."""

    rank: int = 0
    size: int = 1

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks."""
        return self.rank == 0

    def let_first_fail(self) -> None:
        """Before an error is printed: the first process usually has the same, and prints it.

        torchrun ends the others then. If it does not, the error is this process's own.
        """
        if not self.is_first:
            time.sleep(FIRST_FAILS_WITHIN_S)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work with the other processes; nothing is printed but by the first one."""
        if not self.several:
            yield
            return
        from cropi.gradients.ranks import process_group

        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        with self._only_first_prints(), process_group():
            yield

    @contextmanager
    def _only_first_prints(self) -> Iterator[None]:
        if self.is_first:
            yield
            return
        warnings.simplefilter("ignore")
        with Path(os.devnull).open("w", encoding="utf-8") as silence, redirect_stdout(silence):
            yield


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """The process as torchrun's variables describe it; alone without them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    if not all(environment.get(name) for name in names):
        return Launch()
    return Launch(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
