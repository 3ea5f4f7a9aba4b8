"""What a strategy returned, checked and made plain before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropi.plugin_calls import PluginError
from cropi.schema import Selection
from cropi.text import shown


def checked_selection(selection: Any, strategy: str, pool: Collection[str]) -> Selection:
    """The selection that a strategy of this name returned, with plain lists and arrays.

    Raises PluginError for anything but some prompts of `pool` (none: not known), each once, with a
    finite score, and ranks, notes and a count as `Selection` has them.
    """
    if not isinstance(selection, Selection):
        raise PluginError.of(
            "strategy",
            strategy,
            "select",
            f"returned {shown(selection, 60)}, a {type(selection).__name__}",
            "it must return cropi.schema.Selection(prompt_ids, scores)",
        )
    try:
        ids = _ids(selection.prompt_ids, pool)
        return Selection(
            ids,
            _numbers("scores", selection.scores, len(ids), np.dtype(np.float64)),
            _ranks(selection.ranks, len(ids)),
            int(_numbers("negative", [selection.negative], 1, np.dtype(np.int32))[0]),
            _notes(selection.notes),
        )
    except _WrongError as wrong:
        raise PluginError(
            strategy, f"strategy {strategy!r}: the selection that select returned has {wrong}"
        ) from None


class _WrongError(Exception):
    """What is wrong with a selection, and what is allowed."""


def _ids(prompt_ids: Any, pool: Collection[str]) -> list[str]:
    allowed = "give ids of context.prompt_ids, each once"
    ids = prompt_ids.tolist() if isinstance(prompt_ids, np.ndarray) else prompt_ids
    if not isinstance(ids, list | tuple):
        raise _WrongError(f"prompt_ids {shown(ids, 60)}, which is no list; {allowed}")
    if others := [each for each in ids if not isinstance(each, str)]:
        raise _WrongError(f"the prompt {shown(others[0], 60)}, which is no text; {allowed}")
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise _WrongError(f"the prompt {shown(twice[0], 60)} twice; {allowed}")
    if pool and (unknown := [name for name in ids if name not in pool]):
        raise _WrongError(f"the prompt {shown(unknown[0], 60)}, which the pool lacks; {allowed}")
    return [str(name) for name in ids]


def _numbers(name: str, values: Any, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """One number of a kind for each prompt: finite, and from 0 on where it is a whole one."""
    whole = kind.kind == "i"
    allowed = f"give {'whole numbers from 0 on' if whole else 'finite numbers'}, one a prompt"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.size == 0 and count == 0:
        return np.empty(0, kind)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise _WrongError(f"{name} {shown(values, 60)}, which are no numbers; {allowed}")
    if array.shape != (count,):
        raise _WrongError(f"{name} of shape {array.shape} for {count} prompts; {allowed}")
    wrong = array < 0 if whole else ~np.isfinite(array)
    if whole:
        wrong |= array > np.iinfo(kind).max
    if wrong.any():
        raise _WrongError(f"{shown(array[wrong][0].item())} among {name}; {allowed}")
    return array.astype(kind)


def _ranks(ranks: Any, count: int) -> dict[str, NDArray[np.int32]]:
    if not isinstance(ranks, Mapping) or not all(isinstance(name, str) for name in ranks):
        raise _WrongError(f"ranks {shown(ranks, 60)}; give arrays by the validation set's name")
    kind = np.dtype(np.int32)
    return {name: _numbers(f"ranks[{name!r}]", r, count, kind) for name, r in ranks.items()}


def _notes(notes: Any) -> list[str]:
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        raise _WrongError(f"notes {shown(notes, 60)}; give a list of sentences")
    return list(notes)
