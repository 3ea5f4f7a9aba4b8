"""The paper's one-shot baseline: influence under the first policy only, no curriculum."""

from __future__ import annotations

from cropi.selection.base import Scoring
from cropi.selection.cropi import Cropi


class OneShotInfluence(Cropi):
    """The start policy's scores decide every stage."""

    scoring: Scoring = "once"
