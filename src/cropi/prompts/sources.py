"""Where prompts come from: files, the Hugging Face hub, reasoning-gym tasks, pocket's skills.

reasoning-gym needs the extra `cropi[gym]`.
"""

from __future__ import annotations

import ast
import difflib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cropi.errors import InputError
from cropi.prompts.formats import to_prompt
from cropi.prompts.json_values import json_value
from cropi.prompts.row_columns import Cells, RowNotes
from cropi.prompts.row_files import open_rows
from cropi.prompts.settings import PromptSource
from cropi.prompts.shards import find_shards
from cropi.schema import Prompt, derive_seed, fingerprint
from cropi.store import files
from cropi.store.remote import local_copy, with_urls
from cropi.text import remote_url, shown

T = TypeVar("T")
NamedRow = tuple[str, Mapping[str, Any]]
"""A row after what errors call it, such as `pool.jsonl row 3`."""
DEFAULT_TASK_SIZE = 500
"""Prompts that a reasoning-gym task generates if the config gives no size."""


def load_source(
    source: PromptSource,
    seed: int,
    base: Path | None = None,
    *,
    templated: bool = False,
    notes: list[str] | None = None,
) -> list[Prompt]:
    """Load the prompts of one source, in the source's order.

    A path may be a file, a folder of shards, a pattern, or a URL of one, such as
    `s3://bucket/pool/*.parquet` or `hf://datasets/owner/name`; relative paths are looked up in the
    current directory, then in `base` (the config's folder). `seed` drives generated
    tasks and which rows `limit` keeps. Ids may repeat; `sets.deduplicate` handles that. `templated`
    says that the model has a chat template (see `to_prompt`). What a reader should know of how the
    rows were read is appended to `notes`.

    Raises InputError if the source cannot be read or a row cannot become a prompt.
    """
    origin, fallback, rows = _read(source, seed, base)
    if not rows:
        raise InputError(f"{origin} holds no rows; give a source with at least one prompt")
    row_notes = RowNotes(origin)
    prompts = [
        to_prompt(row, source, where, fallback, templated=templated, notes=row_notes)
        for where, row in subsample(rows, source.limit, derive_seed(seed, "limit"))
    ]
    if notes is not None:
        notes += row_notes.lines()
    return prompts


def first_prompts(source: PromptSource, count: int, base: Path | None = None) -> list[Prompt]:
    """Load prompts of the first `count` rows of a source; none of a URL or the hub.

    Nor of reasoning-gym where it is not installed: a config can be checked without its extras.

    Raises InputError as `load_source` does.
    """
    if source.hub is not None or (source.path is not None and remote_url(source.path)):
        return []
    if source.reasoning_gym is not None and not _has_reasoning_gym():
        return []
    if source.path is None:
        small = source.model_copy(update={"size": min(count, source.size or count)})
        origin, fallback, rows = _read(small if source.reasoning_gym else source, 0, base)
    else:
        shards = find_shards(source.path, base, source.split)
        origin, fallback = shards.place, shards.name
        rows = list(islice(_file_rows(shards.files), count))
    if not rows:
        raise InputError(f"{origin} holds no rows; give a source with at least one prompt")
    return [to_prompt(row, source, where, fallback) for where, row in rows[:count]]


def _has_reasoning_gym() -> bool:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        return False
    return True


def _read(source: PromptSource, seed: int, base: Path | None) -> tuple[str, str, list[NamedRow]]:
    """Return what errors call the source, the default `source` of its prompts, and its rows."""
    if source.path is not None:
        return _read_files(source.path, source.split, base)
    if source.hub is not None:
        origin = f"{source.hub} ({_hub_split(source)})"
        return origin, source.hub, _named(_read_hub(source), origin)
    if source.reasoning_gym is not None:
        task = source.reasoning_gym
        tasks = load_task(task, source.size, derive_seed(seed, task), source.options)
        return f"reasoning-gym {task}", task, _named(tasks, f"reasoning-gym {task}")
    return "pocket", "pocket", _named(_read_pocket(source, seed), "pocket")


def _read_files(path: str, split: str | None, base: Path | None) -> tuple[str, str, list[NamedRow]]:
    if remote_url(path) is None:
        shards = find_shards(path, base, split)
        return shards.place, shards.name, list(_file_rows(shards.files))
    with local_copy(path) as place:
        shards = find_shards(str(place), None, split)
        rows = [(with_urls(where), row) for where, row in _file_rows(shards.files)]
        return with_urls(shards.place), shards.name, rows


def _file_rows(shards: Iterable[Path]) -> Iterator[NamedRow]:
    for file in shards:
        for number, row in open_rows(file):
            yield f"{file} row {number}", row


def _named(rows: Iterable[Mapping[str, Any]], origin: str) -> list[NamedRow]:
    return [(f"{origin} row {number}", row) for number, row in enumerate(rows, 1)]


def subsample(items: list[T], limit: int | None, seed: int) -> list[T]:
    """Draw `limit` items with the seed and keep their order; all of them without a limit."""
    if limit is None or limit >= len(items):
        return items
    drawn = random.Random(seed).sample(range(len(items)), limit)
    return [items[i] for i in sorted(drawn)]


def source_hash(path: str, base: Path | None, split: str | None = None) -> str:
    """Return a content hash of a source's files. Raises InputError if they cannot be read."""
    with local_copy(path) as place:
        shards = find_shards(path if remote_url(path) is None else str(place), base, split)
        hashes = [files.file_hash(file) for file in shards.files]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes)


def _hub_split(source: PromptSource) -> str:
    return source.split or "train"


def _read_hub(source: PromptSource) -> Iterable[Mapping[str, Any]]:
    """Download a dataset through `datasets`, or take it from its cache."""
    import datasets

    split = _hub_split(source)
    try:
        rows: Iterable[Mapping[str, Any]]
        rows = datasets.load_dataset(source.hub, source.subset, split=split)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub dataset {source.hub!r} (subset {source.subset!r}, split {split!r}) "
            f"cannot be loaded: {reason}; check names and network, or give a file with `path`"
        ) from error
    _require_text_features(rows, f"{source.hub} ({split})")
    return rows


def _require_text_features(rows: Any, origin: str) -> None:
    """Raise InputError for a dataset with images or sounds, before they are decoded."""
    for column, feature in (getattr(rows, "features", None) or {}).items():
        if media := re.search(r"\b(Image|Audio|Video)\(", repr(feature)):
            raise InputError(
                f"{origin} row 1: column {shown(column, 60)} is of the type {media[1]}, and the "
                "models here read text only; save the dataset without the column if the questions "
                "stand without it, and give it with `path`"
            )


def _read_pocket(source: PromptSource, seed: int) -> Iterable[Mapping[str, Any]]:
    """Generate pocket's rows; without a split in the source, those of the pool."""
    from cropi.pocket import SKILLS, rows

    skills = source.pocket or []
    unknown = [s for s in skills if s not in SKILLS and s != "all"]
    if unknown:
        close = difflib.get_close_matches(unknown[0], SKILLS, n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"give [all] or some of {', '.join(SKILLS)}"
        )
        raise InputError(f"pocket has no skill {unknown[0]!r}; {hint}")
    split = "pool" if source.split in (None, "train") else source.split
    names = None if "all" in skills else skills
    try:
        return list(rows(split, names, source.size, seed, source.levels))
    except ValueError as error:
        raise InputError(f"pocket: {error}") from None


def load_task(task: str, size: int | None, seed: int, options: Mapping[str, Any]) -> list[Cells]:
    """Generate `size` rows of a task, each with the entry by which the verifier scores.

    Raises InputError if reasoning-gym is missing, the task is unknown, or an option is wrong.
    """
    dataset = open_task(task, size or DEFAULT_TASK_SIZE, seed, options)
    return [_task_row(task, dict(options), entry) for entry in dataset]


def open_task(task: str, size: int, seed: int, options: Mapping[str, Any]) -> Any:
    """Return reasoning-gym's dataset of a task, which generates and scores entries.

    Raises InputError as `load_task` does.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise InputError(
            f"reasoning_gym task {task!r} needs the package reasoning-gym; "
            "install it with: pip install 'cropi[gym]'"
        ) from None
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see its gallery for the names"
        raise InputError(f"reasoning_gym has no task {task!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"reasoning_gym task {task!r} rejects the options {dict(options)}: {error}; fix "
            "`options` in the config"
        ) from None


def _task_row(task: str, options: Cells, entry: Cells) -> Cells:
    stored = {"task": task, "options": options, **serialise_entry(entry)}
    answer = entry.get("answer")
    row = {"prompt": entry["question"], "source": task, "extra": {"reasoning_gym": stored}}
    return row if answer is None else {**row, "answer": answer}


def serialise_entry(entry: Cells) -> Cells:
    """Return the entry as JSON, and as a Python literal if JSON would change it.

    Some tasks (arc_agi, rearc) compare tuples in their metadata, which JSON turns into lists.
    """
    stored = json.loads(json.dumps(entry, default=_json_or_text))
    if stored == entry:
        return {"entry": stored}
    literal = repr(entry)
    try:
        exact = ast.literal_eval(literal) == entry
    except (ValueError, SyntaxError):
        exact = False
    return {"entry": stored, **({"literal": literal} if exact else {})}


def _json_or_text(value: Any) -> Any:
    try:
        return json_value(value)
    except TypeError:
        return str(value)


def restore_entry(stored: Mapping[str, Any]) -> Cells:
    """Return the entry as reasoning-gym made it."""
    literal = stored.get("literal")
    return ast.literal_eval(literal) if literal is not None else dict(stored["entry"])
