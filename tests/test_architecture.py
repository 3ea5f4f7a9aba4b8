"""House rules that an import graph and a parser can check."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cropi

ROOT = Path(cropi.__file__).parent
TESTS = Path(__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"
FACADE = ""
"""The name of `cropi` itself, whose functions are those of the packages."""
FLOORS = (
    (
        "errors",
        "text",
        "short_repr",
        "settings_messages",
        "schema",
        "arguments",
        "settings",
        "users_code",
        "plugin_calls",
        "plugins",
        "progress",
    ),
    ("store",),
    ("execution",),
    ("estimation",),
    ("gradients",),
    ("sketches",),
    ("policy", "prompts"),
    ("verifiers",),
    ("rollouts",),
    ("influence",),
    ("selection",),
    ("training",),
    ("evaluation",),
    ("config",),
    ("curriculum",),
    ("study", "diagnostics"),
    ("forecast",),
    ("exchange",),
    ("integrations",),
    ("report",),
    (FACADE,),
    ("cli",),
    ("__main__",),
)
"""Packages and modules from the lowest floor to the highest; none imports one above it.

A package's settings stand on the floor of `settings`: config assembles those of all packages.
"""
ON_NO_FLOOR = {"pocket"}
"""The embedded model and tasks, which are plug-ins of several floors."""
FORBIDDEN_NAMES = {"found", "told", "own", "said", "kept", "known", "mine", "theirs", "way"}
SHARED_BASENAMES = {"__init__.py", "settings.py"}
TRAINERS = {f"{name}.py" for name in ("trl", "verl", "openrlhf", "prime_rl", "nemo_gym", "jsonl")}
"""Files named after the trainer that they speak to: as an engine, in exports, in imports."""
LONGEST_FILE = 400
LONGEST_COMMON_BODY = 100
"""Characters of a function's body up to which two may be equal."""


def module_name(path: Path) -> str:
    """The dotted name of a file below cropi."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            waiting += ast.iter_child_nodes(node)


def below_cropi(name: str) -> str | None:
    """The name of a module of cropi below it; None for other modules."""
    first, _, rest = name.partition(".")
    return rest if first == "cropi" else None


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of cropi that a file imports, at its top or in its functions."""
    return frozenset(imported_modules(parsed(path)))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names = [below_cropi(alias.name) for alias in node.names]
            yield from (name for name in names if name is not None)
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = below_cropi(node.module)
            if base is None:
                continue
            for alias in node.names:
                submodule = f"{base}.{alias.name}".lstrip(".")
                if (base, alias.name) != (FACADE, "__version__"):
                    yield submodule if submodule in MODULES else base


def package(module: str) -> str:
    """The name in FLOORS that a module belongs to."""
    return "settings" if module.endswith(".settings") else module.partition(".")[0]


def test_no_floor_imports_a_higher_one() -> None:
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    upwards = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if not {package(module), package(imported)} & ON_NO_FLOOR
        and height[package(imported)] > height[package(module)]
    ]
    assert upwards == []


def test_packages_of_one_floor_do_not_import_each_other() -> None:
    sideways = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        for floor in FLOORS[1:]
        if {package(module), package(imported)} <= set(floor)
        and package(module) != package(imported)
    ]
    assert sideways == []


def test_every_package_has_its_floor() -> None:
    packages = {package(module) for module in MODULES}
    assert packages == {name for floor in FLOORS for name in floor} | ON_NO_FLOOR


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(path) if name != module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_file_name_is_used_for_two_things() -> None:
    counts = Counter(path.name for path in MODULES.values())
    twice = {name for name, count in counts.items() if count > 1}
    assert twice - SHARED_BASENAMES - TRAINERS == set()


def test_no_file_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES.values()
    }
    assert {name for name, length in lengths.items() if length > LONGEST_FILE} == set()


@pytest.mark.parametrize(
    "module", [name for name, path in MODULES.items() if path.name == "__init__.py" and name]
)
def test_what_a_package_says_it_holds_is_there(module: str) -> None:
    docstring = ast.get_docstring(parsed(MODULES[module])) or ""
    files = {name: path for name, path in MODULES.items() if f"{name}.".startswith(f"{module}.")}
    there = {part for name in files for part in name.split(".")} | {"cropi"}
    for path in files.values():
        nodes = ast.walk(parsed(path))
        there |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert set(re.findall(r"`([a-z_]+)`", docstring)) - there == set()


def test_a_local_is_named_after_what_it_holds() -> None:
    files = [*MODULES.values(), *BENCHMARKS.rglob("*.py"), *TESTS.rglob("*.py")]
    named = {
        f"{path}:{node.lineno}"
        for path in files
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES)
        or (isinstance(node, ast.arg) and node.arg in FORBIDDEN_NAMES)
    }
    assert named == set()


def test_no_function_is_written_twice() -> None:
    homes: dict[str, set[str]] = {}
    for path in [*MODULES.values(), *BENCHMARKS.rglob("*.py"), *TESTS.rglob("*.py")]:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                body = ast.unparse(node.body[ast.get_docstring(node) is not None :])
                homes.setdefault(body, set()).add(f"{path}:{node.name}")
    twice = {body: where for body, where in homes.items() if len(where) > 1}
    assert {body: where for body, where in twice.items() if len(body) > LONGEST_COMMON_BODY} == {}


def test_scripts_and_benchmarks_import_what_is_there() -> None:
    repository = TESTS.parent
    folders = [repository / name for name in ("benchmarks", "scripts", "examples")]
    scripts = [path for folder in folders for path in folder.rglob("*.py")]
    missing = {
        f"{path.relative_to(repository)}:{node.lineno} {node.module}.{alias.name}"
        for path in scripts
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and below_cropi(node.module or "") is not None
        for alias in node.names
        if not is_importable(node.module or "", alias.name)
    }
    assert missing == set()


def is_importable(module: str, name: str) -> bool:
    """Whether a module of cropi is there and mentions a name, or has a module of that name."""
    path = MODULES.get(below_cropi(module) or FACADE)
    if path is None:
        return False
    names = re.findall(r"\w+", path.read_text(encoding="utf-8"))
    return below_cropi(f"{module}.{name}") in MODULES or name in names
