"""The processes of a training that is under way: who does what, and how results come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from cropi.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessGroup:
    """All processes of a training; every method is called by each of them."""

    def __init__(self) -> None:
        self.state = PartialState()

    @property
    def index(self) -> int:
        """This process, from 0."""
        return int(self.state.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.state.num_processes)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of the work."""
        return list(items[self.index :: self.count])

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do the work in every process; return all results, by process.

        Raises InputError in all of them if it is raised in one: the others would wait for ever. In
        that one it keeps its cause, such as what the user's function raised.
        """
        result, refused, cause = None, "", None
        try:
            result = work()
        except InputError as error:
            refused, cause = str(error), error.__cause__
        outcomes: list[tuple[Any, str]] = [(result, refused)]
        if self.count > 1:
            outcomes = gather_object(outcomes)
        if refusals := [text for _, text in outcomes if text]:
            raise InputError(refusals[0]) from cause
        return [each for each, _ in outcomes]

    def by_first(self, work: Callable[[], Result]) -> Result:
        """Do the work in the first process; return its result in every one."""
        return self.together(lambda: work() if self.index == 0 else None)[0]  # type: ignore[return-value]
