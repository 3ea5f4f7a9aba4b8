"""Reads all responses from a file or a folder of a trainer's log.

A folder is searched at any depth. Other files in it (checkpoints, metrics) are left out and
counted; a half-written last line, or the rest of a cut archive, is left out and counted too.
What a path says is used: `step_40/`, `global_step_40/`, `40.jsonl` name a step, `eval/` and
`val.../` rollouts of an evaluation, and other folders the run.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os.path import commonpath
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.exchange.imports.duplicate_files import DuplicateFiles
from cropi.exchange.imports.logged import (
    LARGEST_STEP,
    LogFile,
    LoggedResponse,
    Role,
    cell_names,
    missing_reward_error,
)
from cropi.exchange.imports.rollout_format import (
    TITLE,
    RolloutFormat,
    all_formats,
    format_named,
    recognised_format,
    row_with_reward,
    unrecognised_rows_error,
)
from cropi.plugin_calls import PluginError, calling
from cropi.prompts.row_columns import RowNotes, cell_of
from cropi.prompts.row_files import ENDINGS, NumberedRow, endings, open_rows
from cropi.prompts.shards import in_natural_order
from cropi.schema import MAX_REWARD
from cropi.store.remote import local_place, with_urls
from cropi.text import plural, shown

_STEP = re.compile(
    r"(?:.*[-_.])?(?:global_?step|step|iteration|iter|epoch|checkpoint|rollout|completions|eval)s?[-_.]?0*(\d+)"
)
_NUMBER = re.compile(r"0*(\d+)")
_EVALUATION = re.compile(r"(?<![a-z])(?:eval|evaluation|val|valid|validation|test)(?![a-z])")
_KIND_OF_FOLDER = re.compile(
    r"(?:completions|rollouts?|rollout_data(?:_dir)?|validation(?:_data(?:_dir)?)?|val|eval|train"
    r"|all|effective|data|dumps?|traces|samples|results|rank[-_]?\d+|shard[-_]?\d+)"
)
"""Folders that hold one run's rollouts, and say nothing about which run."""
ROW_ENDINGS = tuple(ending for ending in ENDINGS if ending != ".json")
"""Endings of files that usually hold rows; `.json` is more often a setting."""


@dataclass
class RolloutLog:
    """The responses of a log, the format they were in, and what a reader should know.

    `summed` are the columns whose sum is the reward, where there are several and none was picked.
    """

    place: str
    format: str
    responses: list[LoggedResponse]
    notes: list[str] = field(default_factory=list)
    summed: tuple[str, ...] = ()


def read_rollout_log(
    path: Path,
    format_name: str | None = None,
    rewards: Sequence[str] = (),
    tokens: bool = True,
    unjudged: bool = False,
) -> RolloutLog:
    """Read a file or a folder, or the URL of one.

    `rewards` names the columns whose sum is the reward. Without `tokens`, the tokens of responses
    that also have a text are not read. With `unjudged`, rows need no reward.

    Raises InputError if there are no rollouts in it, or rollouts of several formats.
    """
    path = local_place(path)
    formats = dict([format_named(format_name)]) if format_name else all_formats()
    name, files, notes = _files_of_one_format(path, formats, rewards, unjudged)
    log = RolloutLog(with_urls(str(path)), name, [], notes)
    duplicates = DuplicateFiles()
    for file in files:
        responses = _read(file, path, formats[name], log, rewards, tokens)
        if original := duplicates.original_of(file, responses):
            inside = file.relative_to(path)
            log.notes.append(f"{inside} is a copy of {original.name}, counted once")
        else:
            log.responses += responses
    if rewards and all(math.isnan(each.reward) for each in log.responses):
        _require_column(files[0], rewards)
    _add_note_on_runs(log)
    log.responses = _without_repeats(log)
    if not log.responses:
        noted = f" ({'; '.join(log.notes)})" if log.notes else ""
        raise InputError(
            f"{log.place} is of the format {name} and holds no response{with_urls(noted)}; give "
            "rollouts with responses (of batches, the folder with the results too)"
        )
    log.notes = [with_urls(note) for note in log.notes]
    return log


def _files_of_one_format(
    path: Path, formats: dict[str, RolloutFormat], rewards: Sequence[str], unjudged: bool
) -> tuple[str, list[Path], list[str]]:
    """The one format of a path, the files that have it, and notes about the other files."""
    by_format: dict[str | None, list[Path]] = {}
    notes = list[str]()
    candidates = _candidates(path)
    for file in candidates:
        try:
            by_format.setdefault(_format_of(file, formats, rewards, unjudged), []).append(file)
        except InputError as error:
            if file == path:
                raise
            notes.append(f"left out, as it cannot be read: {error}")
    other = by_format.pop(None, [])
    if not by_format:
        raise _no_rollouts_error(path, candidates, formats, rewards)
    if len(by_format) > 1:
        counts = [
            f"{plural(len(files), 'file')} of {name} (in {commonpath([f.parent for f in files])})"
            for name, files in by_format.items()
        ]
        raise InputError(
            f"{path} holds {' and '.join(counts)}; name one with --format, or give one "
            "of the folders"
        )
    ((name, files),) = by_format.items()
    assert name is not None
    if other:
        named = f"{plural(len(other), 'other file')} in {path.name}"
        notes.append(f"{named} left out, such as {other[0].name}")
    return name, files, notes


def is_rollout_log(path: Path) -> bool:
    """Whether a file or folder holds rollouts, rather than prompts alone."""
    if not path.exists():
        return False
    formats = all_formats()
    try:
        return any(_format_of(file, formats) for file in _candidates(path)[:8])
    except InputError:
        return False


def _candidates(path: Path) -> list[Path]:
    """The files that may hold rollouts, in natural order."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder; give the rollouts of a run")
    files = [file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)]
    likely = [file for file in files if endings(file)[0] in (*ROW_ENDINGS, ".pt")]
    return in_natural_order(likely or [file for file in files if endings(file)[0] == ".json"])


def _is_hidden(file: Path, folder: Path) -> bool:
    # Two lines begin the name that lm-eval gives the folder of a model in an absolute path.
    return any(
        part.startswith((".", "_")) and (part == "__pycache__" or not part.startswith("__"))
        for part in file.relative_to(folder).parts
    )


def _format_of(
    file: Path,
    formats: dict[str, RolloutFormat],
    rewards: Sequence[str] = (),
    unjudged: bool = False,
) -> str | None:
    """The format of a file's first row; None for a file without rollouts.

    A column, or a place in one, that the user names as the reward is one, whatever it is called.
    With `unjudged`, none is needed. Raises InputError if the file cannot be read.
    """
    if file.suffix == ".pt":
        return (
            ("slime" if "slime" in formats else next(iter(formats)))
            if _is_slime_dump(file)
            else None
        )
    first = next(iter(open_rows(file, [])), None)
    if first is None:
        return None
    row = first[1]
    named = any(cell_of(row, name) is not None for name in rewards)
    return recognised_format(row_with_reward(row) if named or unjudged else row, formats)


def _require_column(file: Path, rewards: Sequence[str]) -> None:
    """Raise InputError if the first row of a file has none of the columns, at any depth."""
    if file.suffix != ".pt" and (first := next(iter(open_rows(file, [])), None)):
        number, row = first
        cells = [f".{name}" for name in cell_names(row)]
        if not any(cell.endswith(f".{name}") for name in rewards for cell in cells):
            raise missing_reward_error(rewards, row, f"{file} row {number}")


def _is_slime_dump(file: Path) -> bool:
    """Whether a `.pt` file may be a dump of samples: a checkpoint's tensors are never loaded."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(pickled) as content:
                return b"samples" in content.read(4096)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def _no_rollouts_error(
    path: Path,
    files: Sequence[Path],
    formats: dict[str, RolloutFormat],
    rewards: Sequence[str] = (),
) -> InputError:
    """The error for a path without rollouts: about its first row, if there is one."""
    torn = list[str]()
    for file in files[:1]:
        if file.suffix != ".pt" and (first := next(iter(open_rows(file, torn)), None)):
            number, row = first
            if rewards and recognised_format(row_with_reward(row), formats):
                return missing_reward_error(rewards, row, f"{file} row {number}")
            return unrecognised_rows_error(f"{file} row {number}", row)
    return InputError(
        f"{path} holds no rollouts ({', '.join(ENDINGS)} or slime's .pt) in one of the formats "
        f"{', '.join(formats)}{''.join(f' ({note})' for note in torn)}; give the folder that the "
        "trainer wrote them to"
    )


def _read(
    file: Path,
    folder: Path,
    reader: RolloutFormat,
    log: RolloutLog,
    rewards: Sequence[str],
    tokens: bool,
) -> list[LoggedResponse]:
    """The responses of one file; what was noted about its rows is added to the log."""
    row_notes, torn = RowNotes(str(file)), list[str]()
    inside = file.relative_to(folder) if file != folder else Path(file.name)
    run, step, role = _run(inside), _step(inside), _role(inside)
    log_file = LogFile(file, run, step, role, row_notes, rewards, tokens)
    rows = _dump_rows(file) if file.suffix == ".pt" else open_rows(file, torn)
    with calling(TITLE, log.format, "responses"):
        responses = _responses(reader, rows, log_file)
    _require_responses(responses, log.format)
    for response in responses:
        response.run = response.run or log_file.run
        response.role = "eval" if log_file.role == "eval" else response.role
    log.notes += [*torn, *row_notes.lines()]
    log.summed = tuple(dict.fromkeys((*log.summed, *log_file.summed)))
    return responses


def _responses(
    reader: RolloutFormat, rows: Iterable[NumberedRow], file: LogFile
) -> list[LoggedResponse]:
    """The responses in a file's rows. Raises InputError naming a row of another structure."""
    try:
        return list(reader.responses(rows, file))
    except InputError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        reason = shown(f"{type(error).__name__}: {error}", 120)
        raise InputError(
            f"{file.where(file.row)} does not follow its format ({reason}); correct or remove it"
        ) from error


def _require_responses(responses: Sequence[Any], name: str) -> None:
    """Raise InputError for what a format of the user's gives instead of responses."""
    for each in responses:
        if problem := _problem_of(each):
            raise PluginError.of(
                TITLE,
                name,
                "responses",
                f"gave {problem}",
                "it must yield LoggedResponse(prompt, text, reward), a reward being a number, or "
                "NaN where there is none",
            )


def _problem_of(response: Any) -> str:
    """What is no response, or not one's text, prompt or reward; empty if all is."""
    if not isinstance(response, LoggedResponse):
        return f"{shown(response, 60)}, a {type(response).__name__}"
    fields: list[Any] = [response.text, response.prompt, response.reward]
    text, prompt, reward = fields
    if not isinstance(text, str) or not isinstance(prompt, str | tuple):
        return f"a response whose text is {shown(text, 40)} and whose prompt is {shown(prompt, 40)}"
    if not isinstance(reward, int | float) or abs(reward) > MAX_REWARD:
        return f"the reward {shown(reward, 60)}"
    return ""


def _dump_rows(file: Path) -> list[NumberedRow]:
    """The samples of slime's dump, read as data: a pickle that would run code is refused."""
    import pickle

    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        samples = content["samples"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = shown(" ".join(str(error).split()), 160)
        raise InputError(
            f"{file} cannot be read as plain data ({reason}); write the samples as JSON lines "
            "with prompt, response and reward"
        ) from None
    return list(enumerate(samples, 1))


def _step(inside: Path) -> int | None:
    """The step that a path names: the folder or file closest to the rows first."""
    stem = inside.name.split(".")[0]
    for part in (stem, *reversed(inside.parts[:-1])):
        match = _STEP.fullmatch(part.lower()) or _NUMBER.fullmatch(part)
        if match and (step := int(match[1])) <= LARGEST_STEP:
            return step
    return None


def _role(inside: Path) -> Role:
    words = str(inside).lower().replace("_", " ").replace("-", " ")
    return "eval" if _EVALUATION.search(words) else "train"


def _run(inside: Path) -> str:
    """The folders of a path that name neither a step nor a kind of rollouts."""
    parts = [
        part
        for part in inside.parts[:-1]
        if not (_STEP.fullmatch(part.lower()) or _NUMBER.fullmatch(part))
        and not _KIND_OF_FOLDER.fullmatch(part.lower())
    ]
    return "/".join(parts)


def _add_note_on_runs(log: RolloutLog) -> None:
    runs = Counter(response.run for response in log.responses)
    if len(runs) > 1:
        named = ", ".join(shown(name or ".", 40) for name in islice(runs, 4))
        log.notes.append(
            f"rollouts of {plural(len(runs), 'folder')} that look like runs of their own ({named}) "
            "are taken together: raw pass rates are over all of them; give one to rank it alone"
        )


def _without_repeats(log: RolloutLog) -> list[LoggedResponse]:
    """The responses without those that came before with their id, as in prime-rl's two subsets."""
    whole = [response for response in log.responses if not response.summary]
    if whole and len(whole) < len(log.responses):
        log.notes.append("summaries of rewards are left out, as the rollouts themselves are there")
    unique = list(_first_of_each(whole or log.responses))
    if repeated := len(whole or log.responses) - len(unique):
        log.notes.append(f"{plural(repeated, 'response')} logged twice, counted once")
    return unique


def _first_of_each(responses: Sequence[LoggedResponse]) -> Iterator[LoggedResponse]:
    seen: set[tuple[object, ...]] = set()
    for response in responses:
        content = (response.text, response.reward, str(response.prompt))
        key = (response.run, response.role, response.record_id, *content)
        if not response.record_id or key not in seen:
            seen.add(key)
            yield response
