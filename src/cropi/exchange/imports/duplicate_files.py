"""Files of a log that hold the same responses, whatever their file format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropi.exchange.imports.logged import LoggedResponse
from cropi.prompts.json_values import parsed_json


class DuplicateFiles:
    """Recognises a file whose responses are all those of an earlier one."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], list[tuple[Path, list[LoggedResponse]]]] = {}

    def original_of(self, file: Path, responses: list[LoggedResponse]) -> Path | None:
        """The file that holds the same responses as this one; None for the first of them."""
        if not responses:
            return None
        outline = (len(responses), hash(tuple(sorted(each.text for each in responses))))
        alike = self._seen.setdefault(outline, [])
        content = _content(responses) if alike else []
        for other, others in alike:
            if _content(others) == content:
                return other
        alike.append((file, responses))
        return None


def _content(responses: Sequence[LoggedResponse]) -> list[str]:
    """The content of responses, independent of their order and of the file format."""
    return sorted(
        repr(
            (
                each.step,
                each.role,
                each.group,
                each.record_id,
                each.prompt,
                each.text,
                each.reward,
                None if each.tokens is None else each.tokens.ids.tolist(),
                _normalised(each.about),
            )
        )
        for each in responses
    )


def _normalised(value: Any) -> Any:
    """A cell without what differs between file formats: empty cells, order of keys, 1.0 for 1."""
    value = parsed_json(value)
    if isinstance(value, Mapping):
        filled = {str(key): _normalised(inner) for key, inner in value.items()}
        return sorted((key, inner) for key, inner in filled.items() if inner is not None)
    if isinstance(value, list | tuple):
        return [_normalised(inner) for inner in value]
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value
