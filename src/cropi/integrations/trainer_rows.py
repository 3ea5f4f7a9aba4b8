"""The rows of a data set that a trainer is given, by the ids of their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from cropi.arguments import require_kind
from cropi.errors import InputError
from cropi.prompts.json_values import json_value
from cropi.schema import fingerprint
from cropi.text import shown

Row = dict[str, Any]
ROWS = (Dataset, IterableDataset, list)
"""What a set of rows may be."""


def rows_by_id(name: str, rows: Dataset, prefix: str = "") -> dict[str, Row]:
    """A data set's rows by prompt id: the column `prompt_id`, else a hash of the content.

    Equal rows are one. Raises InputError for a row without a prompt, for one that neither an id nor
    its content names, for two different rows with one id, or if there is no row at all.
    """
    require_kind(rows, ROWS, name, "give a Dataset with a split, or a list of rows")
    by_id: dict[str, Row] = {}
    for number, row in enumerate(rows, 1):
        where = f"{name} row {number}"
        require_kind(row, Mapping, where, 'give rows, such as {"prompt": "1 + 1 ="}')
        prompt, given = row.get("prompt"), row.get("prompt_id")
        if not prompt or not isinstance(prompt, str | list):
            raise InputError(
                f"{where} has {shown(prompt, 60)} as its prompt; give text or a list of messages, "
                f"as TRL's prompt-only format has it; the row has {shown(list(row), 100)}"
            )
        key = prefix + str(given or _content_hash(row, where))
        if by_id.setdefault(key, row) != row and given:  # NaN is unequal to itself
            raise InputError(
                f"{where} has the prompt_id {shown(key, 60)} of another row; make the ids unique, "
                "or remove the column"
            )
    if not by_id:
        raise InputError(f"{name} has no rows; give at least one")
    return by_id


def _content_hash(row: Row, where: str) -> str:
    try:
        return fingerprint(json_value(row))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where} has {error}, so that its content does not name it; give the rows a column "
            "prompt_id, or remove the column"
        ) from None
