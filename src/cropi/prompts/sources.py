"""Where prompts come from: files, the Hugging Face hub, reasoning-gym tasks, pocket's skills.

reasoning-gym needs the extra `cropi[gym]`.
"""

from __future__ import annotations

import ast
import difflib
import json
import random
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cropi.errors import InputError
from cropi.prompts.formats import Cells, json_value, to_prompt
from cropi.prompts.row_files import NumberedRows, open_rows, read_file
from cropi.prompts.settings import PromptSource
from cropi.schema import Prompt, derive_seed
from cropi.store import files
from cropi.store.remote import local_copy, remote_url

T = TypeVar("T")
DEFAULT_TASK_SIZE = 500
"""Prompts that a reasoning-gym task generates if the config gives no size."""


def load_source(source: PromptSource, seed: int, base: Path | None = None) -> list[Prompt]:
    """Load the prompts of one source, in the source's order.

    A path may be a URL, such as `s3://bucket/prompts.parquet` or `hf://datasets/owner/name/x.jsonl`;
    relative paths are looked up in the current directory, then in `base` (the config's folder).
    `seed` drives generated tasks and which rows `limit` keeps. Ids may repeat; `sets.deduplicate`
    handles that.

    Raises InputError if the source cannot be read or a row cannot become a prompt.
    """
    origin, fallback, rows = _read(source, seed, base)
    if not rows:
        raise InputError(f"{origin} holds no rows; give a source with at least one prompt")
    return [
        to_prompt(row, source, f"{origin} row {number}", fallback)
        for number, row in subsample(rows, source.limit, derive_seed(seed, "limit"))
    ]


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
        _, fallback, rows = _read(small if source.reasoning_gym else source, 0, base)
        origin = source.reasoning_gym or "pocket"
    else:
        path = Path(find_file(source.path, base))
        origin, fallback = str(path), path.stem
        rows = list(islice(open_rows(path), count))
    if not rows:
        raise InputError(f"{origin} holds no rows; give a source with at least one prompt")
    return [
        to_prompt(row, source, f"{origin} row {number}", fallback) for number, row in rows[:count]
    ]


def _has_reasoning_gym() -> bool:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        return False
    return True


def _read(source: PromptSource, seed: int, base: Path | None) -> tuple[str, str, NumberedRows]:
    """Return what errors call the source, the default `source` of its prompts, and its rows."""
    if source.path is not None:
        path = find_file(source.path, base)
        with local_copy(path) as file:
            return str(path), file.stem, read_file(file)
    if source.hub is not None:
        return f"{source.hub} ({source.split})", source.hub, _read_hub(source)
    if source.reasoning_gym is not None:
        task = source.reasoning_gym
        rows = load_task(task, source.size, derive_seed(seed, task), source.options)
        return f"reasoning-gym {task}", task, list(enumerate(rows, 1))
    return "pocket", "pocket", _read_pocket(source, seed)


def subsample(items: list[T], limit: int | None, seed: int) -> list[T]:
    """Draw `limit` items with the seed and keep their order; all of them without a limit."""
    if limit is None or limit >= len(items):
        return items
    drawn = random.Random(seed).sample(range(len(items)), limit)
    return [items[i] for i in sorted(drawn)]


def source_hash(path: str, base: Path | None) -> str:
    """Return a content hash of a source's file. Raises InputError if it cannot be read."""
    with local_copy(find_file(path, base)) as file:
        return files.file_hash(file)


def find_file(name: str, base: Path | None) -> str | Path:
    """Return the path of a file, looked up in the current directory and then in `base`.

    A URL is returned as it is. Raises InputError if a local file is in neither folder.
    """
    if url := remote_url(name):
        return url
    places = [Path(name).expanduser(), *([base / name] if base is not None else [])]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        tried = " or ".join(dict.fromkeys(str(p) for p in places))
        raise InputError(f"{tried} is not a file; give the path of an existing file")
    return path


def _read_hub(source: PromptSource) -> NumberedRows:
    """Download a dataset through `datasets`, or take it from its cache."""
    import datasets

    try:
        rows = datasets.load_dataset(source.hub, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub's dataset {source.hub!r} (subset {source.subset!r}, split {source.split!r}) "
            f"cannot be loaded: {reason}; check names and network, or give a file with `path`"
        ) from error
    return list(enumerate(rows, 1))


def _read_pocket(source: PromptSource, seed: int) -> NumberedRows:
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
    split = "pool" if source.split == "train" else source.split
    names = None if "all" in skills else skills
    try:
        return list(enumerate(rows(split, names, source.size, seed, source.levels), 1))
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
