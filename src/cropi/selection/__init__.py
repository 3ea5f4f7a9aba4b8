"""Which prompts the next stage trains on: one file a strategy, one small interface."""

from cropi.selection.fusion import fuse
from cropi.selection.strategy import (
    Needs,
    SelectionContext,
    Strategy,
    find_strategy,
    needs_of,
)

__all__ = ["Needs", "SelectionContext", "Strategy", "find_strategy", "fuse", "needs_of"]
