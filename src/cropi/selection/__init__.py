"""Which prompts the next stage trains on: one file a strategy, one small interface."""

from cropi.selection.fusion import fuse
from cropi.selection.prompt_selection import select
from cropi.selection.registry import find_strategy
from cropi.selection.strategy import Needs, SelectionContext, Strategy, needs_of

__all__ = ["Needs", "SelectionContext", "Strategy", "find_strategy", "fuse", "needs_of", "select"]
