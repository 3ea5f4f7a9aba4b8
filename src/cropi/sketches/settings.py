"""Which sketch is used; the settings of each are beside it. Importing this loads no torch."""

from __future__ import annotations

from typing import ClassVar

from cropi.plugins import Choice, plugin


@plugin("sketch", "exact")
def exact() -> None:
    """No sketch: whole gradients are compared, without projection error."""


class SketchChoice(Choice):
    """What gradients are projected to before they are compared, with its settings."""

    kind: ClassVar[str] = "sketch"
    default: ClassVar[str] = "exact"

    @property
    def is_exact(self) -> bool:
        """Whether whole gradients are compared."""
        return self.name == "exact"
