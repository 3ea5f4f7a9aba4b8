"""Which prompts the next stage trains on: strategies behind one small interface."""

from cropi.selection.fusion import fuse
from cropi.selection.prompt_selection import enough, select, selected_prompts
from cropi.selection.strategy import (
    Needs,
    NothingSelectedError,
    SelectionContext,
    Strategy,
    find_strategy,
    needs_of,
    require_not_empty,
    selection_size,
    top_by_score,
)

__all__ = [
    "Needs",
    "NothingSelectedError",
    "SelectionContext",
    "Strategy",
    "enough",
    "find_strategy",
    "fuse",
    "needs_of",
    "require_not_empty",
    "select",
    "selected_prompts",
    "selection_size",
    "top_by_score",
]
