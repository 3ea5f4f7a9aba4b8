"""Which files a source's path means: one file, a folder of shards, a pattern, or a saved dataset.

All shards are one source with one name, in the order in which a person would count them. A folder
that holds several splits, several kinds of files, or only some of its shards is never guessed at.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cropi.errors import InputError
from cropi.prompts.row_files import ENDINGS, base_name, kind_of
from cropi.text import WILDCARD, shown

BESIDE_DATA = (".md", ".txt", ".yaml", ".yml", ".py", ".lock", ".crc", "")
"""Endings of files that lie beside data and hold no rows."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""What `datasets` writes beside rows."""
_NUMBERED = re.compile(r"(.*?)-?0*(\d+)-of-0*(\d+)\b.*")
_SPLIT = re.compile(
    r"(?<![a-z])(train|training|validation|valid|val|dev|test|testing|eval)(?![a-z])"
)
_SYNONYMS = {"training": "train", "testing": "test", "eval": "test"}
_SYNONYMS |= dict.fromkeys(("valid", "val", "dev"), "validation")


@dataclass(frozen=True, slots=True)
class Shards:
    """The files of one source, in order. `name` is the default `source` of its prompts."""

    place: str
    name: str
    files: list[Path]


def find_shards(path: str, base: Path | None = None, split: str | None = None) -> Shards:
    """Find the files that a path means, from the current directory and then from `base`.

    A folder is a dataset that `datasets` saved, or holds files of one kind, at any depth. `split`
    picks one of several splits that a folder holds.

    Raises InputError if nothing is there, kinds or splits are mixed, or shards are missing.
    """
    places = [Path(path).expanduser(), *([base / path] if base is not None else [])]
    place = next((p for p in places if p.exists()), None)
    if place is not None and place.is_dir():
        return _in_folder(place, split)
    if place is not None:
        shards = Shards(str(place), base_name(place), [place])
    else:
        shards = _matching(places)
    if split is not None:
        raise InputError(
            f"split {shown(split, 60)} has no effect on {shards.place}, which is not a folder of "
            "several splits; remove `split`"
        )
    return shards


def _matching(places: list[Path]) -> Shards:
    """The files that match a pattern; its name is what stands before the first wildcard."""
    for place in places:
        if not WILDCARD.search(str(place)):
            break
        files = [Path(name) for name in glob.glob(str(place), recursive=True)]
        if files := in_natural_order(file for file in files if file.is_file()):
            _require_one_kind(files, str(place))
            return Shards(str(place), _pattern_name(place), files)
    tried = " or ".join(dict.fromkeys(map(str, places)))
    raise InputError(
        f"{tried} is not a file, a folder, or a pattern of files that exist; give the path of "
        "existing files"
    )


def _pattern_name(place: Path) -> str:
    """What a pattern's files have in common: `gsm8k` for `gsm8k-*.jsonl`, or else their folder."""
    parts = place.parts
    first = next(i for i, part in enumerate(parts) if WILDCARD.search(part))
    start = WILDCARD.split(parts[first])[0]
    return re.sub(r"[-_.]+\d*$", "", start) or Path(*parts[:first]).resolve().name or "prompts"


def _in_folder(folder: Path, split: str | None) -> Shards:
    """The files of a folder, and if it holds several splits those of `split`."""
    splits = _saved_splits(folder) or _splits(folder)
    listed = [name for name in splits if name is not None]
    if split is not None and len(listed) > 1 and split in listed:
        files = splits[split]
    elif split is not None:
        raise InputError(
            f"split {shown(split, 60)} is not one of the splits that {folder} holds "
            f"({', '.join(listed) or 'none'}); correct or remove `split`"
        )
    elif len(listed) > 1:
        raise InputError(
            f"{folder} holds the splits {', '.join(listed)}; pick one with `split`, e.g. "
            f"`split: {listed[0]}`"
        )
    else:
        files = in_natural_order(file for part in splits.values() for file in part)
    _require_one_kind(files, str(folder))
    _require_complete(files, folder)
    return Shards(str(folder), folder.resolve().name, files)


def _saved_splits(folder: Path) -> dict[str | None, list[Path]] | None:
    """The files of a folder that `save_to_disk` wrote, by split; None for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        names = _described(folder / "dataset_dict.json", "splits")
        return {str(name): _saved_files(folder / str(name)) for name in names}
    if (folder / "state.json").is_file() and any(folder.glob("*.arrow")):
        return {None: _saved_files(folder)}
    return None


def _saved_files(folder: Path) -> list[Path]:
    """The files of a saved dataset, in the order that it names them in."""
    entries = _described(folder / "state.json", "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    files = [folder / Path(str(name)).name for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(f"{folder} lacks {file.name}, which its state.json names; restore it")
    return files


def _described(path: Path, key: str) -> list[object]:
    """A list in one of the descriptions that `datasets` writes."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        listed = values[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path} does not list {key!r}; save the dataset again")
    return listed


def _splits(folder: Path) -> dict[str | None, list[Path]]:
    """The data files below a folder by the split that their paths name."""
    splits: dict[str | None, list[Path]] = {}
    for file in _data_files(folder):
        named = _SPLIT.findall(str(file.relative_to(folder)).lower())
        split = _SYNONYMS.get(named[0], named[0]) if named else None
        splits.setdefault(split, []).append(file)
    if not splits:
        raise InputError(f"{folder} is a folder without files of prompts ({', '.join(ENDINGS)})")
    return {split: in_natural_order(files) for split, files in splits.items()}


def _data_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder that should hold rows, in order."""
    for file in in_natural_order(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith((".", "_")) for part in parts)
        beside = file.suffix.lower() in BESIDE_DATA or file.name in DESCRIPTIONS
        if file.is_dir() or hidden or beside:
            continue
        if not file.is_file():
            raise InputError(f"{file} is not a file, or a link to none; restore or remove it")
        yield file


def in_natural_order(files: Iterable[Path]) -> list[Path]:
    """Files in natural order: `part-2` before `part-10`."""

    def order(file: Path) -> tuple[list[tuple[int, str]], str]:
        words = re.split(r"(\d+)", str(file).casefold())
        return [(int(w), "") if w.isdecimal() else (0, w) for w in words], str(file)

    return sorted(files, key=order)


def _require_one_kind(files: list[Path], place: str) -> None:
    kinds: dict[str, Path] = {}
    for file in files:
        kinds.setdefault(kind_of(file), file)
    if len(kinds) > 1:
        examples = " and ".join(file.name for file in list(kinds.values())[:2])
        raise InputError(
            f"{place} holds files of several kinds, such as {examples}; name those of one kind "
            "with a pattern, e.g. folder/*.jsonl"
        )


def _require_complete(files: list[Path], folder: Path) -> None:
    """Raise InputError if the names say how many shards there are, and one is missing."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _NUMBERED.fullmatch(str(file.relative_to(folder))):
            numbers.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (start, count), present in numbers.items():
        first = 0 if 0 in present or count not in present else 1
        if missing := sorted(set(range(first, first + count)) - present):
            raise InputError(
                f"{folder}: of the {count} shards {start}-... the one with number {missing[0]} is "
                f"missing; restore it, or name the others with a pattern"
            )
