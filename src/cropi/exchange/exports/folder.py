"""The exported folder: the selection and a random control in a trainer's format, and how to start.

selection.parquet|jsonl  control.parquet|jsonl   rows as the trainer reads them, best first
rewards.py                                       a reward function in the trainer's signature
prompts.parquet  verifiers.json                  what the rewards are judged by
README.md  export.json                           the command, and what was exported
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.exchange.exports.row_table import row_table
from cropi.exchange.exports.trainer_format import Place, Start, TrainerFormat
from cropi.exchange.reward_functions import PROMPTS, VERIFIERS
from cropi.plugin_calls import PluginError, calling
from cropi.plugins import KINDS, find_plugin, plugin_names, resolve_name
from cropi.prompts import write_prompts
from cropi.schema import Prompt, Selection, derive_seed, fingerprint
from cropi.selection import selected_prompts
from cropi.store.files import (
    atomic_folder,
    require_replaceable,
    write_json,
    write_jsonl,
    write_table,
)
from cropi.text import plural, shown
from cropi.verifiers.settings import VerifiersConfig, resolved

TITLE = KINDS["export"].title
SUFFIXES = (".parquet", ".jsonl")
EXPORT_RECORD = "export.json"
DEFAULT_MODEL = "POLICY"
"""Stands in the command for a policy that nobody has named."""


def trainers() -> list[str]:
    """The names of the trainers that can be exported to."""
    return plugin_names("export")


@dataclass(frozen=True)
class Exported:
    """What an export did: the command that starts the training, and what a reader should know."""

    command: str
    selected: int
    controls: int
    shared: int
    notes: list[str]


def export_selection(
    selection: Selection,
    pool: Sequence[Prompt],
    trainer: str,
    out: Path,
    *,
    control: bool = True,
    seed: int = 0,
    verifiers: VerifiersConfig | None = None,
    model: str = "",
) -> Exported:
    """Write a selection as a folder that a trainer loads.

    Args:
        selection: the prompts, best first, with their scores.
        pool: all prompts that were selected from, with every column of their rows.
        trainer: one of `trainers()`.
        out: the folder to write; one that an earlier export wrote is replaced.
        control: whether to write as many prompts again, drawn at random from the pool.
        seed: of that draw.
        verifiers: who judges responses.
        model: the policy that the command names.

    Raises:
        InputError: there is no such trainer, a selected prompt is not in the pool, `out` holds
            something else, or the trainer cannot take such prompts.
    """
    form = _format_named(trainer)
    require_replaceable(out, EXPORT_RECORD, "export")
    chosen = selected_prompts(selection.prompt_ids, pool)
    _require_one_kind(chosen, trainer)
    drawn = random_control(pool, len(chosen), seed) if control else []
    _require_one_kind([*chosen, *drawn], trainer)
    # A trainer may be started from anywhere.
    place, chat = str(out.absolute()), chosen[0].messages is not None
    start = Start(place, model or DEFAULT_MODEL, len(chosen), chat)
    command = _command(form, trainer, start)
    places = [Place(i, i + 1, float(score)) for i, score in enumerate(selection.scores)]
    notes = dict.fromkeys([f"{trainer} takes chats: each text is one user message"])
    if start.chat or not form.chats:
        notes.clear()
    with atomic_folder(out) as part:
        notes |= _write_rows(part / f"selection{form.suffix}", form, trainer, chosen, places)
        if drawn:
            blank = [Place(index) for index in range(len(drawn))]
            notes |= _write_rows(part / f"control{form.suffix}", form, trainer, drawn, blank)
        both = {prompt.prompt_id: prompt for prompt in [*chosen, *drawn]}
        write_prompts(part / PROMPTS, list(both.values()))
        write_json(part / VERIFIERS, resolved(verifiers or VerifiersConfig()))
        for name, text in form.files.items():
            (part / name).write_text(text, encoding="utf-8", newline="\n")
        exported = Exported(
            command, len(chosen), len(drawn), len(chosen) + len(drawn) - len(both), list(notes)
        )
        write_json(part / EXPORT_RECORD, _record(trainer, form, chosen, drawn, seed, exported))
        (part / "README.md").write_text(_readme(trainer, form, exported), encoding="utf-8")
    return exported


def _format_named(trainer: str) -> TrainerFormat:
    """The format of a trainer. Raises InputError if there is none, or it is not whole."""
    name = resolve_name("export", trainer)
    with calling(TITLE, name, "making it"):
        form: TrainerFormat = find_plugin("export", name)()
    missing = [each for each in ("suffix", "read_in", "chats", "files") if not hasattr(form, each)]
    if missing or form.suffix not in SUFFIXES:
        problem = f"lacks {', '.join(missing)}" if missing else f"has suffix {form.suffix!r}"
        raise PluginError(
            name,
            f"{TITLE} {name!r} {problem}; it needs suffix ({' or '.join(SUFFIXES)}), read_in, "
            "chats and files",
        )
    return form


def _command(form: TrainerFormat, trainer: str, start: Start) -> str:
    with calling(TITLE, trainer, "command"):
        command: Any = form.command(start)
    if not isinstance(command, str):
        raise PluginError(
            trainer,
            f"{TITLE} {trainer!r}: command returned {shown(command, 60)}; it must return text",
        )
    return command


def _require_one_kind(prompts: Sequence[Prompt], trainer: str) -> None:
    """Raise InputError where some prompts are chats and others text."""
    chats = sum(prompt.messages is not None for prompt in prompts)
    if 0 < chats < len(prompts):
        text = next(prompt for prompt in prompts if prompt.messages is None)
        raise InputError(
            f"{plural(chats, 'prompt')} are chats and {len(prompts) - chats:,} are text (the first "
            f"is {shown(text.prompt_id, 60)}), and {trainer} takes one kind; make all of them "
            "chats (--chat), or export the sources one by one"
        )


def random_control(pool: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """As many prompts, drawn from the whole pool: what any selection has to beat."""
    draw = np.random.default_rng(derive_seed(seed, "control"))
    return [pool[place] for place in draw.choice(len(pool), count, replace=False)]


def _write_rows(
    path: Path,
    form: TrainerFormat,
    trainer: str,
    prompts: Sequence[Prompt],
    places: Sequence[Place],
) -> dict[str, None]:
    """Write rows; return what a reader should know of them."""
    with calling(TITLE, trainer, "row"):
        rows = [form.row(prompt, place) for prompt, place in zip(prompts, places, strict=True)]
    if other := [row for row in rows if not isinstance(row, dict)]:
        raise PluginError(
            trainer,
            f"{TITLE} {trainer!r}: row returned {shown(other[0], 60)}; it must return a dict",
        )
    if form.suffix == ".jsonl":
        write_jsonl(path, rows)
        return {}
    table, as_text = row_table(rows)
    write_table(path, table)
    return {
        f"column {shown(name, 60)} holds values of several types, and became JSON text": None
        for name in as_text
    }


def _record(
    trainer: str,
    form: TrainerFormat,
    chosen: Sequence[Prompt],
    drawn: Sequence[Prompt],
    seed: int,
    exported: Exported,
) -> dict[str, Any]:
    return {
        "trainer": trainer,
        "format": form.read_in,
        "selected": exported.selected,
        "selection": fingerprint([prompt.prompt_id for prompt in chosen]),
        "control": {
            "prompts": exported.controls,
            "also_selected": exported.shared,
            "seed": seed,
            "ids": fingerprint([prompt.prompt_id for prompt in drawn]),
        },
        "command": exported.command,
        "notes": exported.notes,
    }


def _readme(trainer: str, form: TrainerFormat, exported: Exported) -> str:
    control = (
        "There is no control to compare with: the selection is the whole pool.\n\n"
        if exported.shared == exported.selected == exported.controls > 0
        else f"`control{form.suffix}` holds as many prompts drawn at random from the same pool "
        f"({exported.shared} of them are selected too): train on it with the same settings to see "
        "what the selection is worth.\n\n"
        if exported.controls
        else ""
    )
    notes = "".join(f"- {note}\n" for note in exported.notes)
    return (
        f"# {plural(exported.selected, 'selected prompt')} for {trainer}\n\n"
        f"Format as in {form.read_in}. `selection{form.suffix}` is in order, best first.\n\n"
        f"```\n{exported.command}\n```\n\n{control}{notes}"
    )
