"""Text from outside: what a user, a file or a model wrote, before we show it or name files by it.

`shown` quotes a value in a message, short and without control characters; `printable` escapes
whatever would command a terminal; `require_name` and `require_path` refuse what cannot be a name or
a path.
"""

from __future__ import annotations

import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from cropi.errors import InputError

LONGEST_NAME = 100
"""Characters of a name; a file name has 255 bytes, and ours carry endings."""
LONGEST_PATH = 2_000
LONGEST_PART = 255
"""Bytes between two slashes of a path, which is what file systems take."""
LONGEST_VALUE = 200
"""Characters of a value in a message."""
LARGEST_INTEGER = 2**63 - 1
DEEPEST = 50
"""Levels of nesting of plain values."""
# Path collapses the two slashes of a URL; a drive of Windows has a single letter.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?!/)(.+)")
_REFUSED_IN_NAMES = '/\\*?"<>|:'
_JOINERS = "\u200c\u200d"
"""Invisible, but scripts and emoji need them."""
_ENDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of Unicode that move a cursor, turn a line around or cannot be written at all."""


def is_control(character: str) -> bool:
    """Whether a character does something to a terminal or a line instead of being shown."""
    return unicodedata.category(character) in _ENDS and character not in _JOINERS


def printable(text: str) -> str:
    r"""The text with control characters as escapes such as `\x1b`; line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if is_control(c) and c not in "\n\t" else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Short(reprlib.Repr):
    """A `repr` whose cost does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_int(self, x: int, level: int) -> str:
        """An integer; of a huge one how long it is, because Python refuses to print it."""
        del level
        return repr(x) if abs(x) < 10**40 else f"an integer of {x.bit_length():,} bits"


_SHORT = _Short()


def shown(value: Any, limit: int = LONGEST_VALUE) -> str:
    """The value as Python writes it, cut to about `limit` characters."""
    text = printable(_SHORT.repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def shortened(text: str, limit: int = 2_000) -> str:
    """A message that fits on a screen: the middle of a longer one is left out."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 4]} [...] {text[-limit // 4 :]}"


def nfc(text: str) -> str:
    """The text in Unicode's normal form NFC, in which texts are compared.

    What a model reads is never changed.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plural(number: int, noun: str) -> str:
    """A number and what it counts: "1 prompt", "2,000 prompts"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def require_name(name: str, what: str) -> str:
    """Return a name that can be that of a file; `what` says whose it is.

    Raises InputError for a name that is empty or long, or that has control characters, parts of a
    path, a leading dot, or spaces at its ends.
    """
    problem = _problem_of_name(name)
    if problem:
        raise InputError(
            f"{what} cannot be called {shown(name, 60)}, because {problem}; give it a name of at "
            f"most {LONGEST_NAME} letters, digits and marks such as - _ . ( )"
        )
    return name


def _problem_of_name(name: str) -> str | None:
    """What is wrong with a name."""
    if not name.strip():
        return "the name is empty"
    if len(name) > LONGEST_NAME or len(name.encode("utf-8", "replace")) > 2 * LONGEST_NAME:
        return f"the name has {len(name):,} characters"
    if any(map(is_control, name)):
        return "the name contains control characters"
    if refused := [c for c in _REFUSED_IN_NAMES if c in name]:
        return f"the name contains {' '.join(refused)}"
    if name.startswith(".") or name.startswith("__"):
        return f"the name begins with {'.' if name[0] == '.' else '__'}"
    return "the name begins or ends with a space" if name != name.strip() else None


def require_names(names: Iterable[str], what: str) -> None:
    """Require each of the names, and that no two would be one file on some file system."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", require_name(name, what)).casefold()
        if folded in seen:
            raise InputError(
                f"{what}: {seen[folded]!r} and {name!r} would be the same file on some systems; "
                "rename one"
            )
        seen[folded] = name


WILDCARD = re.compile(r"[*?\[]")
"""What makes a path a pattern."""


def remote_url(path: str | os.PathLike[str]) -> str | None:
    """Return the URL that a path is, with both slashes restored; None for a local path."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2]}" if match else None


def require_path(path: str, what: str = "path") -> str:
    """Return a path that the system can look up. Raises InputError for any other text."""
    problem = None
    if path and not path.strip():
        problem = "is blank"
    elif any(map(is_control, path)):
        problem = "contains control characters"
    elif len(path) > LONGEST_PATH or _longest_part(path) > LONGEST_PART:
        problem = f"is too long ({len(path):,} characters)"
    elif path.startswith("~") and os.path.expanduser(path).startswith("~"):
        problem = "begins with the home folder of a user who does not exist"
    if problem:
        raise InputError(f"{what} {shown(path, 80)} {problem}; correct the path")
    return path


def _longest_part(path: str) -> int:
    """Bytes of the longest name between two slashes."""
    return max(len(part.encode("utf-8", "replace")) for part in path.split("/"))


def require_plain(values: Any, origin: str, place: str = "", depth: int = 0) -> None:
    """Require values that YAML and JSON can hold and a person can have meant.

    Raises InputError, naming the dotted key, for text with NUL or a lone surrogate, integers beyond
    64 bits, and values nested more than `DEEPEST` levels.
    """
    problem = _problem_of_value(values)
    if depth > DEEPEST:
        problem = f"is nested more than {DEEPEST} levels deep"
    if problem:
        raise InputError(f"{origin}: {shortened(printable(place), 200) or 'a key'} {problem}")
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        children = values.items()
    elif isinstance(values, list | tuple):
        children = enumerate(values)
    for key, value in children:
        if problem := _problem_of_value(key):
            raise InputError(f"{origin}: the key {shown(key, 60)} in {place or 'it'} {problem}")
        require_plain(value, origin, f"{place}.{key}".lstrip("."), depth + 1)


def _problem_of_value(value: Any) -> str | None:
    if isinstance(value, str) and not is_text(value):
        return f"= {shown(value, 60)} has a NUL or a lone surrogate in it; remove it"
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        return f"= {shown(value)} is beyond 64 bits; give a smaller number"
    return None


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8 and handed to the system: no NUL, no lone surrogate."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
