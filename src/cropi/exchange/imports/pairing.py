"""Which prompt each response of a log belongs to: by id, by text, or by its rendered text.

With rows of the data (`--prompts`) every response finds its row or is counted as without one, and
the pool is all rows. Without them the pool is the prompts that the log names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cropi.errors import InputError
from cropi.exchange.imports.logged import LoggedResponse
from cropi.exchange.imports.question_finder import QuestionFinder, single_spaced
from cropi.exchange.imports.rollout_folder import RolloutLog
from cropi.prompts.json_values import json_value
from cropi.schema import Message, Prompt, content_id
from cropi.text import nfc, plural, shown
from cropi.verifiers.statement import gold_statement


@dataclass
class Pairing:
    """The pool, and the index in it of each response's prompt (-1: none).

    `complete` says whether the pool's prompts are whole, so that a trainer can be given them: texts
    that a template has already made would be templated twice.
    """

    pool: list[Prompt]
    indices: list[int]
    complete: bool
    notes: list[str] = field(default_factory=list)


def pair_with_log(log: RolloutLog) -> Pairing:
    """Make a pool of the prompts that a log names."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for number, response in enumerate(log.responses):
        if _is_identified(response):
            members.setdefault(_prompt_key(response), []).append(number)
    if not members:
        raise InputError(f"{log.place} has no question for any response; {_IDENTITY_FIX}")
    pool, indices, taken = list[Prompt](), [-1] * len(log.responses), set[str]()
    for index, numbers in enumerate(members.values()):
        for number in numbers:
            indices[number] = index
        pool.append(_prompt([log.responses[number] for number in numbers], taken))
    whole = all(prompt.content.strip() for prompt in pool)
    rendered = any(response.rendered for response in log.responses)
    firsts = [log.responses[numbers[0]] for numbers in members.values()]
    notes = [*_reused_id_notes(firsts), *_unidentified_notes(indices.count(-1))]
    if not whole or rendered:
        kind = "as a chat template made them" if whole else "as token ids or names alone"
        notes.append(
            f"the log holds prompts {kind}, which no trainer can be given; --prompts with the rows "
            "of your data makes an export possible"
        )
    return Pairing(pool, indices, whole and not rendered, notes)


_IDENTITY_FIX = "give rows with the question or a prompt_id"


def _is_identified(response: LoggedResponse) -> bool:
    """Whether a response says which prompt it belongs to: by an id, a question or its tokens."""
    return bool(response.prompt_id or _text(response).strip() or response.tokens is not None)


def _unidentified_notes(lost: int) -> list[str]:
    """A note on responses that could be of any prompt, which would make one group of them all."""
    if not lost:
        return []
    return [f"{plural(lost, 'response')} without a question or an id, left out; {_IDENTITY_FIX}"]


def _reused_id_notes(firsts: Sequence[LoggedResponse]) -> list[str]:
    """A note on ids that name several questions, such as row numbers that begin again.

    `firsts` are the first response to each prompt.
    """
    prompts = Counter((each.source, each.prompt_id) for each in firsts if each.prompt_id)
    reused = [prompt_id for (_, prompt_id), count in prompts.items() if count > 1]
    if not reused:
        return []
    return [
        f"{plural(len(reused), 'id')} with several questions each (the first: "
        f"{shown(reused[0], 40)}), taken as prompts of their own by what was asked"
    ]


def _prompt_key(response: LoggedResponse) -> tuple[Any, ...]:
    """A key that responses to one prompt share: its id and question, or all of its content.

    Ids of some logs are numbers of rows, and begin again in the next file. Where the trainer says
    which responses it compared, the id alone counts: environments may ask differently each time.
    """
    if response.prompt_id:
        text = "" if response.group else single_spaced(_text(response))
        return (response.source, response.prompt_id, text, "id")
    if response.prompt or response.tokens is None:
        return (response.source, nfc(_text(response)), nfc(response.answer))
    return (response.source, response.tokens.prompt_ids.tobytes(), response.answer)


def _text(response: LoggedResponse) -> str:
    prompt = response.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _prompt(responses: Sequence[LoggedResponse], taken: set[str]) -> Prompt:
    """The prompt of some responses, with the columns on whose values all of them agree."""
    first = responses[0]
    shared = dict(first.about)
    for response in responses[1:]:
        about = response.about
        shared = {k: v for k, v in shared.items() if k in about and about[k] == v}
    text = first.prompt if isinstance(first.prompt, str) else None
    messages = None if isinstance(first.prompt, str) else first.prompt
    prompt = Prompt("", first.answer, first.source, text, messages, _json_cells(shared))
    content = prompt.content
    if not content and first.tokens is not None:
        content = first.tokens.prompt_ids.tobytes().hex()
    prompt_id = first.prompt_id or content_id(content, first.answer, first.source)
    if prompt_id in taken:
        prompt_id = content_id(f"{prompt_id} {content}", first.answer, first.source)
    taken.add(prompt_id)
    return replace(prompt, prompt_id=prompt_id)


def _json_cells(cells: dict[str, Any]) -> dict[str, Any]:
    """The cells that JSON can hold."""
    plain = {}
    for key, value in cells.items():
        try:
            plain[key] = json_value(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return plain


def pair_with_prompts(log: RolloutLog, pool: list[Prompt], decode: Any = None) -> Pairing:
    """Find each response's row among the prompts of the data.

    `decode` turns token ids into text, for logs that hold nothing else. Raises InputError if no
    response finds its row.
    """
    finder = _RowFinder(pool)
    index_of: dict[tuple[Any, ...], int] = {}
    indices = []
    for response in log.responses:
        key = _prompt_key(response)
        if key not in index_of:
            index_of[key] = finder.find(response, decode)
        indices.append(index_of[key])
    notes = [
        *finder.notes(),
        *_unmatched_notes(log, indices),
        *_answer_conflict_notes(log, pool, indices),
    ]
    if all(index < 0 for index in indices):
        raise _no_match_error(log, pool)
    return Pairing(pool, indices, complete=True, notes=notes)


def _no_match_error(log: RolloutLog, pool: Sequence[Prompt]) -> InputError:
    """The error if no response of the log belongs to a row of the data."""
    first = log.responses[0]
    if not _text(first) and first.prompt_id:
        return InputError(
            f"{log.place} names what was asked by ids alone (the first: "
            f"{shown(first.prompt_id, 80)}), and no row of --prompts has one of them (the first: "
            f"{shown(pool[0].prompt_id, 80)}); give the questions beside the responses (the file "
            "of a batch's requests in one folder with its results), or rows with these ids"
        )
    return InputError(
        f"no response of {log.place} belongs to a row of --prompts (the log's first prompt: "
        f"{shown(_text(first), 80)}; the first row: {shown(pool[0].content, 80)}); give the rows "
        "that the run was trained on"
    )


class _RowFinder:
    """Finds rows by id or text; of several rows with one text, the one with the log's answer."""

    def __init__(self, pool: Sequence[Prompt]) -> None:
        self._pool = pool
        self._by_id = {prompt.prompt_id: index for index, prompt in enumerate(pool)}
        self._by_text: dict[str, list[int]] = {}
        for index, prompt in enumerate(pool):
            for text in _lookup_texts(prompt.content, prompt.messages):
                self._by_text.setdefault(text, []).append(index)
        self._ambiguous: Counter[str] = Counter()
        self._conflicting_ids: list[str] = []
        self._finder = QuestionFinder(self._by_text)

    def find(self, response: LoggedResponse, decode: Any) -> int:
        """The index of a response's row; -1 if there is none, or more than one."""
        texts = _response_lookup_texts(response, decode)
        text = next((text for text in texts if text in self._by_text), None)
        if text is None and response.rendered:
            text = next(filter(None, map(self._finder.find, texts)), None)
        named = self._by_id.get(response.prompt_id)
        if named is not None and (text is None or named in self._by_text[text]):
            return named
        if named is not None:
            self._conflicting_ids.append(response.prompt_id)
        return -1 if text is None else self._row(text, response.answer)

    def _row(self, text: str, answer: str) -> int:
        """The index of the only row with a text, or with that text and the log's answer."""
        indices = self._by_text[text]
        if len(indices) > 1:
            indices = [index for index in indices if _same_answer(self._pool[index].answer, answer)]
        if len(indices) == 1:
            return indices[0]
        self._ambiguous[text] += 1
        return -1

    def notes(self) -> list[str]:
        """Warnings about the rows that were found."""
        notes = []
        if self._ambiguous:
            notes.append(
                f"{plural(len(self._ambiguous), 'prompt')} of the log appear in several rows of "
                f"--prompts and were left out, such as {shown(next(iter(self._ambiguous)), 60)}"
            )
        if self._conflicting_ids:
            notes.append(
                f"{plural(len(self._conflicting_ids), 'prompt')} with the id of one row and the "
                f"question of another (the first id: {shown(self._conflicting_ids[0], 40)}), taken "
                "as the row with the question"
            )
        if len(self._finder.templates) > 1:
            notes.append(
                f"the log's prompts appear in {len(self._finder.templates)} different templates or "
                "system messages"
            )
        return notes


def _lookup_texts(content: str, messages: Sequence[Message] | None) -> list[str]:
    """The texts by which a prompt is found: its content, and the question if there is just one.

    The last question of a longer conversation ("Go on.") may be that of many others.
    """
    asked = [str(m["content"]) for m in messages or () if m["role"] == "user"]
    alone = asked if len(asked) == 1 else []
    return list(dict.fromkeys(single_spaced(text) for text in [content, *alone]))


def _response_lookup_texts(response: LoggedResponse, decode: Any) -> list[str]:
    """The texts by which a response may find its row."""
    if isinstance(response.prompt, tuple):
        return _lookup_texts(_text(response), response.prompt)
    if not response.prompt and response.tokens is not None and decode is not None:
        return [single_spaced(decode(response.tokens.prompt_ids.tolist()))]
    return [single_spaced(response.prompt)] if response.prompt else []


def _same_answer(first: str, second: str) -> bool:
    """Whether two gold answers are written alike, without the solutions that they end."""
    return single_spaced(gold_statement(first)) == single_spaced(gold_statement(second))


def _unmatched_notes(log: RolloutLog, indices: Sequence[int]) -> list[str]:
    lost = [r for r, index in zip(log.responses, indices, strict=True) if index < 0]
    if not lost:
        return []
    prompts = len({_prompt_key(response) for response in lost})
    return [
        f"{plural(len(lost), 'response')} of {plural(prompts, 'prompt')} that --prompts does not "
        f"have, left out (the first: {shown(_text(lost[0]) or lost[0].prompt_id, 60)})"
    ]


def _answer_conflict_notes(
    log: RolloutLog, pool: Sequence[Prompt], indices: Sequence[int]
) -> list[str]:
    """A note on rows whose answer differs from the one in the log."""
    other: dict[int, str] = {}
    compared: set[tuple[int, str]] = set()
    for response, index in zip(log.responses, indices, strict=True):
        if index >= 0 and response.answer and (index, response.answer) not in compared:
            compared.add((index, response.answer))
            expected = pool[index].answer
            if not _same_answer(response.answer, expected):
                other[index] = f"{shown(response.answer, 40)} and {shown(expected, 40)}"
    if not other:
        return []
    return [
        f"{plural(len(other), 'prompt')} have another answer in the log than in --prompts (the "
        f"first: {next(iter(other.values()))}); rewards are those of the log"
    ]
