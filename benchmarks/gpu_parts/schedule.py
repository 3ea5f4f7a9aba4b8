"""The parts in order of worth: what comes first is still there if time runs out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_parts.place import Figures, Place


@dataclass(frozen=True)
class Part:
    """A generator of figures, as `package.module:function`, and the seconds it needs and may take.

    A part is not begun with fewer than `least` seconds left.
    """

    name: str
    function: str
    least: float
    limit: float

    def loaded(self) -> Callable[[Place], Figures]:
        """The function; its figures come as soon as they are there."""
        module, _, name = self.function.partition(":")
        function: Callable[[Place], Figures] = getattr(importlib.import_module(module), name)
        return function


PARTS = (
    Part("machine", "gpu_parts.machine:machine", 10, 40),
    Part("parity", "gpu_parts.parity:parity", 20, 75),
    Part("hashing", "gpu_parts.hashing:hashing", 20, 50),
    Part("qwen", "gpu_parts.costs:qwen", 30, 90),
    Part("sketches", "gpu_parts.costs:sketches", 25, 60),
    Part("memory", "gpu_parts.memory:memory", 20, 50),
    Part("smollm2", "gpu_parts.costs:smollm2", 15, 40),
    Part("longest_group", "gpu_parts.memory:longest_group", 20, 45),
    Part("stage", "gpu_parts.training:stage", 30, 90),
    Part("study", "gpu_parts.training:study", 90, 1800),
)


def chosen(names: str) -> list[Part]:
    """The parts named with commas between them, in their order; all for an empty text.

    Raises ValueError for a name that is no part.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    names_of_parts = [part.name for part in PARTS]
    for name in wanted:
        if name not in names_of_parts:
            raise ValueError(f"--only {name!r} is not a part; allowed: {', '.join(names_of_parts)}")
    return [part for part in PARTS if not wanted or part.name in wanted]
