"""YAML 1.2 in and out: the core schema, with every key once, and limits.

`on`, `yes`, `12:30` and dates are text, `010` is ten and `1e-6` a number, as YAML 1.2 has it and
readers expect. Anchors and the merge key `<<` work; aliases that lead back to themselves or grow
beyond `MOST_VALUES` do not. What `dump` writes, readers of YAML 1.1 and of 1.2 read alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

from cropi.errors import InputError
from cropi.text import DEEPEST, LARGEST_INTEGER, is_control, printable, shown

LONGEST_TEXT = 1_000_000
"""Characters of a file; a config has some thousands."""
MOST_VALUES = 50_000
"""Values when every alias is replaced by its value."""

_PREFIX = "tag:yaml.org,2002:"
_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
"""Tag, pattern and first characters of what is not text without quotes, the first match counts."""


def parse(text: str, origin: str) -> Any:
    """Return the plain values that a YAML text holds; `origin` is named in errors.

    Raises InputError for a text that is not YAML, has a key twice, or is beyond a limit.
    """
    if len(text) > LONGEST_TEXT:
        raise InputError(
            f"{origin} has {len(text):,} characters, more than the {LONGEST_TEXT:,} of a config; "
            "give the right file"
        )
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {_reason(error)}") from None


def _reason(error: yaml.YAMLError) -> str:
    """Say what is wrong and where, without the lines themselves."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return printable(" ".join(str(error).split()))[:300]
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    parts = [part for part in (error.context, error.problem) if part]
    return printable(", ".join(parts))[:300] + where


class _Loader(yaml.SafeLoader):
    """PyYAML with the resolver, the types and the limits of this module."""

    # Not those of SafeLoader, which are YAML 1.1's: binary, dates, sets, sexagesimal numbers.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is nested too deep."""
        if self._depth > DEEPEST:
            problem = f"values are nested more than {DEEPEST} deep"
            raise yaml.composer.ComposerError(None, None, problem, self.get_mark())
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, check its keys, and bound what its aliases make of it."""
        node = super().get_single_node()
        if node is not None and self._size(node, {}) > MOST_VALUES:
            raise _refused(node, f"its aliases make more than {MOST_VALUES:,} values of it")
        return node

    def _size(self, node: yaml.Node, sizes: dict[int, int]) -> int:
        """Count the values of a node; 0 in `sizes` marks one that is being counted."""
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise _refused(node, "an alias leads back to the value that contains it")
            return sizes[id(node)]
        sizes[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            self._require_single_keys(node)
        sizes[id(node)] = 1 + sum(self._size(child, sizes) for child in _children(node))
        return sizes[id(node)]

    def _require_single_keys(self, node: yaml.MappingNode) -> None:
        """Raise YAMLError for a key that appears twice; merged ones are not yet."""
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused(key_node, "a key is a list or a mapping; give text")
            merge = key_node.tag == f"{_PREFIX}merge"
            key = ("<<",) if merge else self.construct_object(key_node)
            if key in keys:
                raise _refused(key_node, f"the key {shown(key_node.value, 60)} appears twice")
            keys.add(key)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    """A mapping: its own keys override those below a merge key."""
    if not isinstance(node, yaml.MappingNode):
        raise _refused(node, "a value tagged as a mapping is not one")
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refused(node, "a value tagged as a list is not one")
    return [loader.construct_object(child, deep=True) for child in node.value]


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Null, a truth value or a number, tagged or not; the text must be one by the core schema."""
    kind, text = node.tag.removeprefix(_PREFIX), _text(loader, node)
    if not re.fullmatch(next(pattern for name, pattern, _ in _CORE if name == kind), text):
        raise _refused(node, f"{shown(text, 60)} is tagged {kind} and is not one")
    if kind == "int":
        return _integer(node, text)
    if kind == "float":
        return _float(node, text)
    return None if kind == "null" else text.lower() == "true"


def _float(node: yaml.Node, text: str) -> float:
    if text.lstrip("+-")[1:].lower() in ("inf", "nan"):
        return float(text.replace(".", ""))
    value = float(text)
    if math.isinf(value):
        raise _refused(node, f"the number {shown(text, 40)} is larger than 1.8e308")
    return value


def _integer(node: yaml.Node, text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    if len(text) < 30:
        value = int(text, base)
        if -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            return value
    raise _refused(node, f"the integer {shown(text, 40)} ({len(text):,} digits) is beyond 64 bits")


def _unknown(loader: _Loader, node: yaml.Node) -> Any:
    del loader
    raise _refused(node, f"the tag {shown(node.tag.removeprefix(_PREFIX), 60)} is not supported")


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_BUILDERS: dict[str | None, Any] = {
    **dict.fromkeys((f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float")), _scalar),
    f"{_PREFIX}str": _text,
    f"{_PREFIX}seq": _sequence,
    f"{_PREFIX}map": _mapping,
    None: _unknown,
}
_Loader.yaml_constructors = _BUILDERS


class _Dumper(yaml.SafeDumper):
    """PyYAML that quotes what either version of YAML would not take for text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out: a resolved config names no anchors."""
        del data
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a plain scalar by YAML 1.1, or else by 1.2: neither may change text."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and implicit[0] and tag == f"{_PREFIX}str":
            for name, pattern, _ in _CORE:
                if re.fullmatch(pattern, value):
                    return f"{_PREFIX}{name}"
        return tag


def dump(values: Any) -> str:
    """Return plain values as YAML; control characters are escaped."""
    options: dict[str, Any] = {"sort_keys": False, "width": 100}
    text: str = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, **options)
    if any(is_control(c) and c != "\n" for c in text):
        text = yaml.dump(values, Dumper=_Dumper, allow_unicode=False, **options)
    return text
