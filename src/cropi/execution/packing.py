"""Units as bytes, for workers elsewhere: what many units share is packed, and unpacked, once."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from cropi.execution.units import WorkUnit


@dataclass(frozen=True)
class Shared:
    """A pickled object, and the hash by which a worker knows that it has it already."""

    key: str
    content: bytes

    @classmethod
    def of(cls, value: Any) -> Shared:
        """Pack an object."""
        content = pickle.dumps(value)
        return cls(sha256(content).hexdigest(), content)

    def object(self) -> Any:
        """The object, which this process unpacks once and keeps until it is given another one."""
        if self.key not in _held:
            _held.clear()  # the last one may hold a model
            _held[self.key] = pickle.loads(self.content)
        return _held[self.key]


_held: dict[str, Any] = {}
"""In a worker: the object that its units share."""


@dataclass(frozen=True)
class PackedUnit:
    """A unit without what it shares with others, and that."""

    plain: WorkUnit
    shared: Shared | None

    def unit(self) -> WorkUnit:
        """The unit as it was."""
        if self.shared is None:
            return self.plain
        return replace(self.plain, shared=self.shared.object())


class Packer:
    """Packs units; neighbours that share an object share its bytes."""

    def __init__(self) -> None:
        self._last: tuple[Any, Shared] | None = None

    def packed(self, unit: WorkUnit) -> PackedUnit:
        """The unit for a worker."""
        return PackedUnit(replace(unit, shared=None), self.shared(unit))

    def shared(self, unit: WorkUnit) -> Shared | None:
        """What a unit shares with others, packed; None if it shares nothing."""
        if unit.shared is None:
            return None
        if self._last is None or self._last[0] is not unit.shared:
            self._last = unit.shared, Shared.of(unit.shared)
        return self._last[1]


def picklable_error(error: Exception) -> Exception:
    """The error, or a RuntimeError with its text if it cannot be unpickled elsewhere."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (unpickling runs the exception's own code)
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(traceback.format_exc())
        return plain
    return error
