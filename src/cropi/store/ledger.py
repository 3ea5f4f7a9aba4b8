"""The ledger of a run: which outputs are finished, what they were made from, and their contents.

`artifacts.jsonl` has one line per output, with the fingerprint of its inputs and the hash of each
of its files. An output is listed after its files have their names, so a kill between the two costs
one output that is made again, and nothing is ever listed that is not whole. Each line has a hash of
its own: a damaged line is as good as none.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xxhash

from cropi.store.files import atomic_write, content_hash, remove

LEDGER = "artifacts.jsonl"
REPORTED = {".json", ".jsonl", ".yaml", ".parquet"}
"""Suffixes of the files that reports read."""


@dataclass(frozen=True)
class Entry:
    """A finished output: the fingerprint of its inputs, and its files' hashes by relative path."""

    inputs: str
    files: Mapping[str, str]


class Backup(Protocol):
    """Where a run is kept beside its directory."""

    def holds(self, name: str, content: str) -> bool:
        """Whether it has a listed file with this content."""

    def push(self, listed: Mapping[str, str]) -> None:
        """Make it have the files that are listed, with their hashes by name, and no others."""


class Ledger:
    """The ledger of the run in `root`; paths in it are relative, so that the run may be moved.

    One process at a time may change it: the one that holds the lock of the directory.
    """

    def __init__(self, root: Path, backup: Backup | None = None) -> None:
        self.root = root
        self.file = root / LEDGER
        self.backup = backup
        self._entries, self.unreadable = _read(self.file)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The finished outputs by their names."""
        return self._entries

    def __contains__(self, output: Path) -> bool:
        return self._name(output) in self._entries

    def inputs(self, output: Path) -> str | None:
        """The fingerprint of the inputs of a finished output; None if it is not listed."""
        entry = self._entries.get(self._name(output))
        return None if entry is None else entry.inputs

    def damaged(self, output: Path) -> Path | None:
        """The first file of a listed output that is missing or has another content, if any."""
        entry = self._entries.get(self._name(output), Entry("", {}))
        for name, expected in entry.files.items():
            if not self._is_intact(name, expected):
                return self.root / name
        return None

    def _is_intact(self, name: str, expected: str) -> bool:
        """Whether a file is as it was left, here or where the run is kept."""
        file = self.root / name
        if self.backup is not None and not file.exists():
            return self.backup.holds(name, expected)
        return _hash(file) == expected

    def is_current(self, output: Path, inputs_fingerprint: str) -> bool:
        """Whether an output was made from these inputs and every file of it is as it was left."""
        return self.inputs(output) == inputs_fingerprint and self.damaged(output) is None

    def is_changed(self, file: Path) -> bool:
        """Whether a file is listed, and missing or not as it was left."""
        expected = listed_files(self._entries.values()).get(self._name(file))
        return expected is not None and not self._is_intact(self._name(file), expected)

    def all_intact(self) -> bool:
        """Whether there are outputs, and all of them are as they were left."""
        return bool(self._entries) and all(
            self.damaged(self.root / name) is None for name in self._entries
        )

    def changed(self) -> list[Path]:
        """Tables, records and rows that are not as they were left, which reports do not read."""
        files = self._reported()
        return [
            self.root / name for name in sorted(files) if not self._is_intact(name, files[name])
        ]

    def _reported(self) -> dict[str, str]:
        """The hashes of the listed files that reports read, by name."""
        files = [each for entry in self._entries.values() for each in entry.files.items()]
        return {name: expected for name, expected in files if Path(name).suffix in REPORTED}

    def notes(self) -> list[str]:
        """What reports say of files that are not as they were left."""
        changed = self.changed()
        notes = [
            f"{self._name(file)} is damaged or missing and was left out: it is not what was "
            "written; the command that made it makes it again"
            for file in changed
        ]
        listed = len(self._reported())
        if len(changed) > listed / 2:
            difference = f"{len(changed)} of {listed} files are not as {LEDGER} lists them"
            notes.insert(0, f"{difference}; is it of another run?")
        if self.unreadable:
            notes.append(
                f"{LEDGER} has {self.unreadable} damaged lines; what they list is unchecked"
            )
        return notes

    def record(self, output: Path, inputs_fingerprint: str, files: Iterable[Path]) -> None:
        """List an output with its files, or with those in it where one is a folder."""
        paths = sorted({each for file in files for each in _files_in(file)})
        hashes = {self._name(path): content_hash(path) for path in paths}
        self._set(self._name(output), Entry(inputs_fingerprint, hashes))

    def files(self, output: Path) -> list[Path]:
        """The files of a listed output, wherever they are; none of another one."""
        entry = self._entries.get(self._name(output), Entry("", {}))
        return [self.root / name for name in entry.files]

    def forget_files(self, output: Path, files: Collection[Path]) -> None:
        """Stop expecting some files of an output, which are about to be deleted."""
        entry, names = self._entries.get(self._name(output)), {self._name(f) for f in files}
        if entry is not None:
            left = {name: each for name, each in entry.files.items() if name not in names}
            self._set(self._name(output), Entry(entry.inputs, left))

    def copy(self, other: Ledger, outputs: Iterable[str]) -> None:
        """List what another run's ledger lists under these names, or in folders of these names."""
        for name, entry in other._entries.items():
            if any(name == each or name.startswith(f"{each}/") for each in outputs):
                self._set(name, entry)

    def take_over(self, entries: Mapping[str, Entry], instead_of: Iterable[str]) -> None:
        """List these outputs instead of what is listed under some names."""
        kept_back = set(instead_of)
        others = {name: e for name, e in self._entries.items() if name not in kept_back}
        self._entries = {**others, **entries}
        self._write()

    def repair(self) -> None:
        """Write the file again if it has bytes that no ledger has; call it before any work."""
        if self.file.is_dir():
            remove(self.file)
        if self.file.exists() and self.file.read_bytes() != self._content():
            self._write()

    def _set(self, name: str, entry: Entry) -> None:
        if self._entries.get(name) != entry or not self.file.exists():
            self._entries[name] = entry
            self._write()

    def _write(self) -> None:
        with atomic_write(self.file) as part:
            part.write_bytes(self._content())
        if self.backup is not None:
            self.backup.push(listed_files(self._entries.values()))

    def _content(self) -> bytes:
        lines = [_line(name, entry) for name, entry in sorted(self._entries.items())]
        return "".join(line + "\n" for line in lines).encode()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def listed_files(entries: Iterable[Entry]) -> dict[str, str]:
    """The hashes of the files of some outputs, by name."""
    return {name: content for entry in entries for name, content in entry.files.items()}


def _files_in(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path]


def _hash(path: Path) -> str | None:
    try:
        return content_hash(path) if path.is_file() else None
    except OSError:  # a disk that cannot read it any more
        return None


def _line(name: str, entry: Entry) -> str:
    """An entry as a line, without its end."""
    values = {"output": name, "inputs": entry.inputs, "files": dict(entry.files)}
    return json.dumps(values | {"line_hash": _hash_of_values(values)}, ensure_ascii=False)


def _hash_of_values(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def _read(file: Path) -> tuple[dict[str, Entry], int]:
    """The entries of a ledger whose lines are undamaged, and how many are damaged."""
    if not file.is_file():
        return {}, 0
    return parse_ledger(file.read_text(encoding="utf-8", errors="replace"))


def parse_ledger(text: str) -> tuple[dict[str, Entry], int]:
    """The entries of a ledger whose lines are undamaged, and how many are damaged."""
    entries = [_parsed(line) for line in text.split("\n") if line]
    return dict(filter(None, entries)), entries.count(None)


def _parsed(line: str) -> tuple[str, Entry] | None:
    try:
        values = json.loads(line)
        expected = values.pop("line_hash")
        if _hash_of_values(values) != expected:
            return None
        return values["output"], Entry(values["inputs"], values["files"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
