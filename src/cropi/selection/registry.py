"""Strategies by name."""

from __future__ import annotations

from cropi.errors import InputError
from cropi.plugins import find_plugin
from cropi.selection.strategy import Strategy

BUILTIN = {
    "cropi": "cropi.selection.cropi:Cropi",
    "influence": "cropi.selection.one_shot:OneShotInfluence",
    "random": "cropi.selection.random:Random",
    "pass_rate": "cropi.selection.pass_rate:PassRate",
    "learnability": "cropi.selection.learnability:Learnability",
    "full": "cropi.selection.full:Full",
    "dapo": "cropi.selection.dapo:Dapo",
    "gradalign": "cropi.selection.gradalign:GradAlign",
    "learnalign": "cropi.selection.learnalign:LearnAlign",
    "oracle": "cropi.selection.oracle:Oracle",
}


def find_strategy(name: str) -> Strategy:
    """Return the strategy called `name`, or the user's own at `package.module:object`.

    The object is a class without arguments or a ready strategy. Raises InputError otherwise.
    """
    found = find_plugin("selection.strategy", name, BUILTIN)
    strategy = found() if isinstance(found, type) else found
    if not callable(getattr(strategy, "select", None)) or not hasattr(strategy, "scoring"):
        raise InputError(
            f"selection.strategy {name!r} is no strategy; it needs select(context) and a scoring "
            "attribute of 'stage', 'once' or 'never'"
        )
    return strategy  # type: ignore[no-any-return]
