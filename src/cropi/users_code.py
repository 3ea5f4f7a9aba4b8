"""The files that a user's plug-in is made of: its own, and what it imports from beside it.

They are read, not run: `import` statements are followed wherever they stand, in functions too.
What is installed is not followed, nor what is imported by a name that is made at run time.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def code_at(place: str) -> str:
    """The hash of the code at a Python file or module; "" where there is none to read."""
    try:
        defining, top = _defined_at(place)
        code = hashlib.sha256(defining.read_bytes())
        for file in _imported_below(defining, top):
            code.update(file.relative_to(top).as_posix().encode() + b"\0" + file.read_bytes())
    except (ImportError, ValueError, OSError):  # what only a verifier's process finds
        return ""
    return code.hexdigest()[:16]


def _defined_at(place: str) -> tuple[Path, Path]:
    """The file of a module, and the folder in which its absolute imports are looked up."""
    if place.endswith(".py"):
        return Path(place), Path(place).parent
    spec = importlib.util.find_spec(place)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ImportError(place)
    file = Path(spec.origin)
    return file, file.parents[place.count(".") + (file.name == "__init__.py")]


def _imported_below(defining: Path, top: Path) -> list[Path]:
    """The files below `top` that a file imports, or that these import, sorted."""
    waiting, files = [defining], {defining}
    while waiting and not _is_installed(top):
        imported = {f for f in _imported(waiting.pop(), top) if f.is_relative_to(top)} - files
        files |= imported
        waiting += imported
    return sorted(files - {defining})


@cache
def _installed_places() -> tuple[Path, ...]:
    """Where packages and Python itself are installed, and cropi."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [Path(sysconfig.get_path(name)) for name in names]
    return (*dict.fromkeys(places), Path(__file__).parents[1])


def is_installed(file: Path) -> bool:
    """Whether a file is a package's, Python's or cropi's, and not the user's own."""
    frozen = file.name.startswith("<")
    return frozen or any(file.is_relative_to(place) for place in _installed_places())


def _is_installed(top: Path) -> bool:
    return any(top.resolve() == place.resolve() for place in _installed_places())


def _imported(file: Path, top: Path) -> Iterator[Path]:
    """The files below `top` that the imports of a file name; none of a file that is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(top, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else top
            for alias in node.names:
                parts = [part for part in (node.module, alias.name) if part]
                yield from _modules(base, ".".join(parts), relative=node.level > 0)


def _modules(base: Path, dotted: str, relative: bool = False) -> Iterator[Path]:
    """The files in `base` of a module and of the packages that it is in, as far as there are any.

    The last name may be something in a module instead.
    """
    parts = dotted.split(".")
    if not relative and (parts[0] in sys.stdlib_module_names or parts[0] == "cropi"):
        return
    if relative and (base / "__init__.py").is_file():
        yield base / "__init__.py"
    for part in parts:
        base /= part
        for file in (base / "__init__.py", base.with_name(f"{part}.py")):
            if file.is_file():
                yield file
