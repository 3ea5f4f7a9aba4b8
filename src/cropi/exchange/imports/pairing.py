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
from cropi.exchange.imports.rollout_folder import RolloutLog
from cropi.exchange.imports.scaffolds import QuestionFinder, folded
from cropi.prompts.json_values import json_value
from cropi.schema import Message, Prompt, content_id
from cropi.text import composed, plural, shown
from cropi.verifiers.statement import gold_statement


@dataclass
class Pairing:
    """The pool, and the place in it of each response's prompt (-1: none).

    `complete` says whether the pool's prompts are whole, so that a trainer can be given them: texts
    that a template has already made would be templated twice.
    """

    pool: list[Prompt]
    places: list[int]
    complete: bool
    notes: list[str] = field(default_factory=list)


def pair_with_log(log: RolloutLog) -> Pairing:
    """Make a pool of the prompts that a log names."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for number, response in enumerate(log.responses):
        if _is_named(response):
            members.setdefault(_key(response), []).append(number)
    if not members:
        raise InputError(f"{log.place} has no question for any response; {_NAME_THEM}")
    pool, places, taken = list[Prompt](), [-1] * len(log.responses), set[str]()
    for place, numbers in enumerate(members.values()):
        for number in numbers:
            places[number] = place
        pool.append(_prompt([log.responses[number] for number in numbers], taken))
    whole = all(prompt.content.strip() for prompt in pool)
    rendered = any(response.rendered for response in log.responses)
    firsts = [log.responses[numbers[0]] for numbers in members.values()]
    notes = [*_reused_ids(firsts), *_nameless(places.count(-1))]
    if not whole or rendered:
        kind = "as a chat template made them" if whole else "as token ids or names alone"
        notes.append(
            f"the log holds prompts {kind}, which no trainer can be given; --prompts with the rows "
            "of your data makes an export possible"
        )
    return Pairing(pool, places, whole and not rendered, notes)


_NAME_THEM = "give rows with the question or a prompt_id"


def _is_named(response: LoggedResponse) -> bool:
    """Whether a response says whose it is: by an id, a question or its tokens."""
    return bool(response.prompt_id or _text(response).strip() or response.tokens is not None)


def _nameless(lost: int) -> list[str]:
    """A note on responses that could be of any prompt, which would make one group of them all."""
    if not lost:
        return []
    return [f"{plural(lost, 'response')} without a question or an id, left out; {_NAME_THEM}"]


def _reused_ids(firsts: Sequence[LoggedResponse]) -> list[str]:
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


def _key(response: LoggedResponse) -> tuple[Any, ...]:
    """What two responses of one prompt share: its own id and question, or all of its content.

    Ids of some logs are numbers of rows, and begin again in the next file. Where the trainer says
    which responses it compared, the id alone counts: environments may ask differently each time.
    """
    if response.prompt_id:
        text = "" if response.group else folded(_text(response))
        return (response.source, response.prompt_id, text, "id")
    if response.prompt or response.tokens is None:
        return (response.source, composed(_text(response)), composed(response.answer))
    return (response.source, response.tokens.prompt_ids.tobytes(), response.answer)


def _text(response: LoggedResponse) -> str:
    prompt = response.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _prompt(responses: Sequence[LoggedResponse], taken: set[str]) -> Prompt:
    """The prompt of some responses; its further columns are those that all of them agree on."""
    first = responses[0]
    shared = dict(first.about)
    for response in responses[1:]:
        about = response.about
        shared = {k: v for k, v in shared.items() if k in about and about[k] == v}
    text = first.prompt if isinstance(first.prompt, str) else None
    messages = None if isinstance(first.prompt, str) else first.prompt
    prompt = Prompt("", first.answer, first.source, text, messages, _plain(shared))
    content = prompt.content
    if not content and first.tokens is not None:
        content = first.tokens.prompt_ids.tobytes().hex()
    prompt_id = first.prompt_id or content_id(content, first.answer, first.source)
    if prompt_id in taken:
        prompt_id = content_id(f"{prompt_id} {content}", first.answer, first.source)
    taken.add(prompt_id)
    return replace(prompt, prompt_id=prompt_id)


def _plain(cells: dict[str, Any]) -> dict[str, Any]:
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
    place_of: dict[tuple[Any, ...], int] = {}
    places = []
    for response in log.responses:
        key = _key(response)
        if key not in place_of:
            place_of[key] = finder.find(response, decode)
        places.append(place_of[key])
    notes = [*finder.notes(), *_without_row(log, places), *_other_answers(log, pool, places)]
    if all(place < 0 for place in places):
        raise _no_row_at_all(log, pool)
    return Pairing(pool, places, complete=True, notes=notes)


def _no_row_at_all(log: RolloutLog, pool: Sequence[Prompt]) -> InputError:
    """The error for rows of which the log has none; its first prompt may be an id alone."""
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
    """Rows of the data by id and by text; of several with one text, that with the log's answer."""

    def __init__(self, pool: Sequence[Prompt]) -> None:
        self._pool = pool
        self._by_id = {prompt.prompt_id: place for place, prompt in enumerate(pool)}
        self._by_text: dict[str, list[int]] = {}
        for place, prompt in enumerate(pool):
            for text in _texts(prompt.content, prompt.messages):
                self._by_text.setdefault(text, []).append(place)
        self._ambiguous: Counter[str] = Counter()
        self._contradicted: list[str] = []
        self._finder = QuestionFinder(self._by_text)

    def find(self, response: LoggedResponse, decode: Any) -> int:
        """The place of a response's row; -1 if there is none, or more than one."""
        texts = _logged_texts(response, decode)
        text = next((text for text in texts if text in self._by_text), None)
        if text is None and response.rendered:
            text = next(filter(None, map(self._finder.find, texts)), None)
        named = self._by_id.get(response.prompt_id)
        if named is not None and (text is None or named in self._by_text[text]):
            return named
        if named is not None:
            self._contradicted.append(response.prompt_id)
        return -1 if text is None else self._row(text, response.answer)

    def _row(self, text: str, answer: str) -> int:
        """The row with a text: the only one, or the only one with the answer of the log."""
        places = self._by_text[text]
        if len(places) > 1:
            places = [place for place in places if _answers(self._pool[place].answer, answer)]
        if len(places) == 1:
            return places[0]
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
        if self._contradicted:
            notes.append(
                f"{plural(len(self._contradicted), 'prompt')} with the id of one row and the "
                f"question of another (the first id: {shown(self._contradicted[0], 40)}), taken "
                "as the row with the question"
            )
        if len(self._finder.scaffolds) > 1:
            notes.append(
                f"the log's prompts appear in {len(self._finder.scaffolds)} different templates or "
                "system messages"
            )
        return notes


def _texts(content: str, messages: Sequence[Message] | None) -> list[str]:
    """The texts by which a prompt is found: all that it says, and the question if it is the only.

    Of a longer conversation, what the user says last ("Go on.") may be that of many.
    """
    asked = [str(m["content"]) for m in messages or () if m["role"] == "user"]
    alone = asked if len(asked) == 1 else []
    return list(dict.fromkeys(folded(text) for text in [content, *alone]))


def _logged_texts(response: LoggedResponse, decode: Any) -> list[str]:
    """The texts by which a response may find its row."""
    if isinstance(response.prompt, tuple):
        return _texts(_text(response), response.prompt)
    if not response.prompt and response.tokens is not None and decode is not None:
        return [folded(decode(response.tokens.prompt_ids.tolist()))]
    return [folded(response.prompt)] if response.prompt else []


def _answers(first: str, second: str) -> bool:
    """Whether two gold answers are written alike, without the solutions that they end."""
    return folded(gold_statement(first)) == folded(gold_statement(second))


def _without_row(log: RolloutLog, places: Sequence[int]) -> list[str]:
    lost = [r for r, place in zip(log.responses, places, strict=True) if place < 0]
    if not lost:
        return []
    prompts = len({_key(response) for response in lost})
    return [
        f"{plural(len(lost), 'response')} of {plural(prompts, 'prompt')} that --prompts does not "
        f"have, left out (the first: {shown(_text(lost[0]) or lost[0].prompt_id, 60)})"
    ]


def _other_answers(log: RolloutLog, pool: Sequence[Prompt], places: Sequence[int]) -> list[str]:
    """Rows whose answer is another than the one that the log says was judged by."""
    other: dict[int, str] = {}
    compared: set[tuple[int, str]] = set()
    for response, place in zip(log.responses, places, strict=True):
        if place >= 0 and response.answer and (place, response.answer) not in compared:
            compared.add((place, response.answer))
            expected = pool[place].answer
            if not _answers(response.answer, expected):
                other[place] = f"{shown(response.answer, 40)} and {shown(expected, 40)}"
    if not other:
        return []
    return [
        f"{plural(len(other), 'prompt')} have another answer in the log than in --prompts (the "
        f"first: {next(iter(other.values()))}); rewards are those of the log"
    ]
