"""What happened to the prompts on their way in: nothing is dropped without a line here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Overlap:
    """Prompts of one set whose text stands in another one."""

    exact: int = 0
    normalised: int = 0

    @property
    def total(self) -> int:
        """Prompts that overlap, word for word or after normalising."""
        return self.exact + self.normalised


@dataclass(slots=True)
class PromptNotes:
    """Counts by set; sets are called `pool`, `validation NAME` and `test NAME`."""

    sizes: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    disputed: dict[str, int] = field(default_factory=dict)
    overlap: dict[str, Overlap] = field(default_factory=dict)
    overlap_action: str = "remove"
    overlap_removed: int = 0
    between: dict[str, Overlap] = field(default_factory=dict)
    shared_ids: int = 0
    overlong: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return one sentence for everything worth knowing; none where all is well."""
        return [
            *(_count(n, "duplicate", f"of the {s} left out") for s, n in self.duplicates.items()),
            *(
                _count(n, "question", f"of the {s} stand with more than one answer: all kept")
                for s, n in self.disputed.items()
            ),
            *(self._overlap_line(s, o) for s, o in self.overlap.items()),
            *(_between_line(pair, o) for pair, o in self.between.items()),
            *self._shared_ids_line(),
            *(
                _count(n, "prompt", f"of the {s} too long for the model: dropped")
                for s, n in self.overlong.items()
            ),
        ]

    def _overlap_line(self, other: str, overlap: Overlap) -> str:
        action = "removed from the pool" if self.overlap_action == "remove" else "kept"
        return _count(overlap.total, "pool prompt", f"also in {other}{_share(overlap)}: {action}")

    def _shared_ids_line(self) -> list[str]:
        if not self.shared_ids:
            return []
        tail = "on different prompts of different sets: sets are told apart by name"
        return [_count(self.shared_ids, "id", tail)]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return asdict(self)


def _count(number: int, noun: str, tail: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'} {tail}"


def _share(overlap: Overlap) -> str:
    if not overlap.normalised:
        return ""
    return f" ({overlap.normalised} of them up to case, spaces and punctuation)"


def _between_line(pair: str, overlap: Overlap) -> str:
    return _count(overlap.total, "prompt", f"in both {pair}{_share(overlap)}: kept in both")
