"""What can happen to stored files, and what came of using them afterwards.

A `Scene` is a folder in which cropi has worked, and the ways in which it is used again. `attempt`
damages one file of a copy, uses it in a forked process, and says how that ended: the results are
the bytes that they would have been ("unharmed"), the damage was named in one sentence ("told"), or
neither ("silent", "unnamed", "traceback", "hang").
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HANG_SECONDS = 120.0
Ending = Literal["unharmed", "told", "silent", "unnamed", "traceback", "hang"]
GOOD: tuple[Ending, ...] = ("unharmed", "told")
NOT_PROMISED = ("timings.jsonl", "report.html", "log.txt", ".lock")
"""Wall times, pages that show them, logs and locks: their bytes are no result."""


@dataclass(frozen=True)
class Use:
    """What is done with a folder that was damaged, from inside it: a command or a function.

    `results` are patterns of the files whose bytes count afterwards.
    """

    name: str
    call: Sequence[str] | Callable[[], object]
    results: Sequence[str] = ("**/*",)
    files: Sequence[str] = ("**/*",)
    """Patterns of the files that it reads, which are the ones to damage."""
    takes_others: bool = False
    """Whether another sound file in the place of one is an input like any other."""


@dataclass(frozen=True)
class Scene:
    """A working folder `place`, how it is used, and the same work of another seed (`other`)."""

    name: str
    place: Path
    other: Path
    uses: Sequence[Use]


@dataclass(frozen=True)
class Outcome:
    """How a process ended: exit code (None: it was killed), what it printed, what it left."""

    code: int | None
    printed: str
    results: Mapping[str, str] = field(default_factory=dict)
    pages: str = ""


@dataclass(frozen=True)
class Attempt:
    """One file of a scene, damaged in one way, then used."""

    scene: str
    use: str
    file: str
    damage: str
    ending: Ending
    printed: str


def in_fork(call: Sequence[str] | Callable[[], object], folder: Path) -> Outcome:
    """Call in a process of its own, from `folder`; one that does not end is killed."""
    printed = folder.with_name(folder.name + ".printed")
    child = os.fork()
    if child == 0:
        _be_the_child(call, folder, printed)
    code = _wait(child)
    text = printed.read_text(encoding="utf-8", errors="replace")
    printed.unlink()
    return Outcome(code, text)


def _be_the_child(call: Sequence[str] | Callable[[], object], folder: Path, printed: Path) -> None:
    code = 1
    try:
        os.setsid()
        handle = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        code = _called(call)
    except BaseException:  # noqa: BLE001  (the child must not return into the parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _called(call: Sequence[str] | Callable[[], object]) -> int:
    from cropi.cli import main

    def command() -> None:
        if callable(call):
            sys.argv = ["cropi", "config", "list"]
            call()
        else:
            sys.argv = ["cropi", *call]
            main()

    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _wait(child: int) -> int | None:
    """The exit code of a child; None for one that had to be killed."""
    end = time.monotonic() + HANG_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def results_of(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Hash of every file that matches, but wall times, pages and locks."""
    files = {f for pattern in patterns for f in folder.glob(pattern) if f.is_file()}
    asked = {Path(pattern).name for pattern in patterns}
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.name not in NOT_PROMISED or file.name in asked
    }


def used(
    scene: Scene, use: Use, work: Path, damage: Callable[[Path], bool] | None
) -> Outcome | None:
    """Use a copy of a scene's folder, damaged before; None where the damage does not apply."""
    folder = work / "place"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scene.place, folder, symlinks=True)
    if damage is not None and not damage(folder):
        return None
    outcome = in_fork(use.call, folder)
    return Outcome(
        outcome.code, outcome.printed, results_of(folder, use.results), _pages(folder, use.results)
    )


def _pages(folder: Path, patterns: Sequence[str]) -> str:
    """The text of the pages among the results; what is missing is named there."""
    pages = [p for pattern in patterns if pattern.endswith(".html") for p in folder.glob(pattern)]
    return "".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())


class Reference:
    """What each use of a scene gives where nothing is damaged; made once."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def of(self, scene: Scene, use: Use, work: Path) -> Outcome:
        key = (scene.name, use.name)
        if key not in self._outcomes:
            outcome = used(scene, use, work, None)
            assert outcome is not None
            assert outcome.code == 0, f"{key} fails undamaged: {outcome.printed}"
            self._outcomes[key] = outcome
        return self._outcomes[key]


def attempt(
    scene: Scene, use: Use, file: str, damage: str, work: Path, reference: Reference
) -> Attempt | None:
    """Damage one file and use the folder; None where the way does not apply to the file."""
    act = WAYS[damage]
    expected = reference.of(scene, use, work)
    outcome = used(scene, use, work, lambda folder: act(folder / file, scene.other / file))
    if outcome is None:
        return None
    ending = ending_of(outcome, expected, file)
    last = [line for line in outcome.printed.splitlines() if line.strip()][-1:]
    printed = outcome.printed if ending == "traceback" else "".join(last)
    return Attempt(scene.name, use.name, file, damage, ending, printed)


def ending_of(outcome: Outcome, expected: Outcome, file: str) -> Ending:
    """Say how the use of a damaged file ended."""
    name = Path(file).name
    if outcome.code is None:
        return "hang"
    if "Traceback" in outcome.printed or outcome.code not in (0, 2):
        return "traceback"
    if outcome.code == 2:
        error = next(line for line in outcome.printed.split("\n") if line.startswith("error: "))
        return "told" if name in error or str(Path(file).parent) in error else "unnamed"
    if outcome.results == expected.results:
        return "unharmed"
    text, usual = outcome.printed + outcome.pages, expected.printed + expected.pages
    return "told" if text.count(name) > usual.count(name) else "silent"


def possible(scene: Scene, use: Use) -> list[tuple[str, str]]:
    """Every file that a use reads, with every way in which it could be damaged."""
    files = {f for pattern in use.files for f in scene.place.glob(pattern) if f.is_file()}
    names = sorted(f.relative_to(scene.place).as_posix() for f in files)
    kinds = [damage for damage in WAYS if not (use.takes_others and damage in REPLACED)]
    return [(name, damage) for name in names for damage in kinds]


def warm_up() -> None:
    """Import and compute in this process what every fork of it would do again."""
    import cropi.curriculum.loop
    import cropi.report.pages.run_page
    import cropi.study.runner
    import cropi.training.start_policy  # noqa: F401
    from cropi.prompts import load_source
    from cropi.prompts.settings import PromptSource

    for split in ("pool", "validation", "test"):
        load_source(PromptSource(pocket=["sort", "shift", "add"], split=split, size=3), 0)


# The ways. Each takes the file, and its sibling in the same work of another seed, which may lack.


def _flip(place: Callable[[int, random.Random], int]) -> Callable[[Path, Path], bool]:
    def flip(file: Path, _: Path) -> bool:
        content = bytearray(file.read_bytes())
        if not content:
            return False
        draw = random.Random(file.name)
        content[place(len(content), draw)] ^= 1 << draw.randrange(8)
        return _rewrite(file, bytes(content))

    return flip


def _rewrite(file: Path, content: bytes) -> bool:
    """Replace the content; not where it is what was there, or hard-linked elsewhere."""
    if content == file.read_bytes():
        return False
    file.unlink()
    file.write_bytes(content)
    return True


def _truncate(file: Path, _: Path) -> bool:
    return _rewrite(file, file.read_bytes()[: file.stat().st_size // 2])


def _cut_last_byte(file: Path, _: Path) -> bool:
    return _rewrite(file, file.read_bytes()[:-1])


def _empty(file: Path, _: Path) -> bool:
    return _rewrite(file, b"")


def _append(file: Path, _: Path) -> bool:
    return _rewrite(file, file.read_bytes() + b"\n{}\n")


def _remove(file: Path, _: Path) -> bool:
    file.unlink()
    return True


def _directory(file: Path, _: Path) -> bool:
    file.unlink()
    file.mkdir()
    return True


def _swap(file: Path, other: Path) -> bool:
    """The same file of another seed."""
    return other.is_file() and _rewrite(file, other.read_bytes())


def _stale(file: Path, _: Path) -> bool:
    """The file of the stage, shard or set before it, as an old copy that was restored."""
    siblings = [
        path
        for path in (*file.parent.glob(f"*{file.suffix}"), *file.parent.parent.rglob(file.name))
        if path != file and path.is_file() and path.read_bytes() != file.read_bytes()
    ]
    return bool(siblings) and _rewrite(file, min(siblings).read_bytes())


def _edit(change: Callable[[Any, random.Random], Any]) -> Callable[[Path, Path], bool]:
    """Change a value of a JSON or JSONL file (the first that is an object, by lot a key)."""

    def edit(file: Path, _: Path) -> bool:
        if file.suffix not in (".json", ".jsonl"):
            return False
        lines = file.read_text().split("\n") if file.suffix == ".jsonl" else [file.read_text()]
        number = random.Random(file.name).randrange(max(1, len(lines) - 1))
        value = json.loads(lines[number])
        if not isinstance(value, dict) or not value:
            return False
        change(value, random.Random(str(file.name)))
        lines[number] = json.dumps(value, indent=None if len(lines) > 1 else 2)
        return _rewrite(file, "\n".join(lines).encode())

    return edit


def _without_key(value: dict[str, Any], draw: random.Random) -> None:
    del value[draw.choice(sorted(value))]


def _other_type(value: dict[str, Any], draw: random.Random) -> None:
    key = draw.choice(sorted(value))
    value[key] = 7 if isinstance(value[key], str | dict | list) else {"a": ["b"]}


def _huge_number(value: dict[str, Any], draw: random.Random) -> None:
    numbers = [k for k, v in sorted(value.items()) if isinstance(v, int | float)]
    value[draw.choice(numbers or sorted(value))] = draw.choice([10**30, -1, 1e308])


REPLACED = ("another seed's", "a sibling's")
WAYS: dict[str, Callable[[Path, Path], bool]] = {
    "first byte": _flip(lambda size, _: 0),
    "middle byte": _flip(lambda size, _: size // 2),
    "last byte": _flip(lambda size, _: size - 1),
    "any bit": _flip(lambda size, draw: draw.randrange(size)),
    "another bit": _flip(lambda size, draw: (draw.randrange(size) * 7) % size),
    "half": _truncate,
    "last byte cut": _cut_last_byte,
    "appended": _append,
    "empty": _empty,
    "removed": _remove,
    "a directory": _directory,
    "another seed's": _swap,
    "a sibling's": _stale,
    "key removed": _edit(_without_key),
    "another type": _edit(_other_type),
    "huge number": _edit(_huge_number),
}
