"""The pool, the validation sets and the test sets: loaded, without duplicates or overlap."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cropi.arguments import require_kind
from cropi.errors import InputError
from cropi.prompts.encoding import has_chat_template
from cropi.prompts.overlap import PHRASE_WORDS, SharedPhrase, normalised, shared_phrases
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.prompts.sources import load_source, subsample
from cropi.schema import Prompt, derive_seed
from cropi.settings_messages import message_of
from cropi.text import nfc, plural, shown

POOL = "pool"
"""The name of what is selected from, beside those of other sets."""


@dataclass(slots=True)
class Overlap:
    """How many prompts of one set have a text that is also in another set."""

    exact: int = 0
    normalised: int = 0

    @property
    def total(self) -> int:
        """Prompts that overlap, word for word or after normalising."""
        return self.exact + self.normalised


@dataclass(slots=True)
class PromptNotes:
    """What happened to the prompts while loading: nothing is dropped without a line here.

    Counts by set; sets are called `pool`, `validation NAME` and `test NAME`.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    disputed: dict[str, int] = field(default_factory=dict)
    overlap: dict[str, Overlap] = field(default_factory=dict)
    overlap_action: str = "remove"
    overlap_removed: int = 0
    between: dict[str, Overlap] = field(default_factory=dict)
    phrases: dict[str, SharedPhrase] = field(default_factory=dict)
    shared_ids: int = 0
    overlong: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return one sentence per finding; none if there is nothing to report."""
        return [
            *self.rows,
            *(_count(n, "duplicate", f"of the {s} left out") for s, n in self.duplicates.items()),
            *(
                _count(n, "question", f"of the {s} have more than one answer: all kept")
                for s, n in self.disputed.items()
            ),
            *(self._overlap_line(s, o) for s, o in self.overlap.items()),
            *(_between_line(pair, o) for pair, o in self.between.items()),
            *(_phrase_line(s, hit) for s, hit in self.phrases.items()),
            *self._shared_ids_line(),
            *(
                _count(n, "prompt", f"of the {s} too long for the model: dropped")
                for s, n in self.overlong.items()
            ),
            *(
                _count(n, "prompt", f"of the {s} with an answer that cannot be read: dropped")
                for s, n in self.unreadable.items()
            ),
        ]

    def _overlap_line(self, other: str, overlap: Overlap) -> str:
        action = "removed from the pool" if self.overlap_action == "remove" else "kept"
        return _count(overlap.total, "pool prompt", f"also in {other}{_share(overlap)}: {action}")

    def _shared_ids_line(self) -> list[str]:
        if not self.shared_ids:
            return []
        tail = "on different prompts of different sets: sets are distinguished by name"
        return [_count(self.shared_ids, "id", tail)]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-able values."""
        return asdict(self)


def _count(number: int, noun: str, tail: str) -> str:
    return f"{plural(number, noun)} {tail}"


def _share(overlap: Overlap) -> str:
    if not overlap.normalised:
        return ""
    return f" ({overlap.normalised} of them up to case, spaces and punctuation)"


def _between_line(pair: str, overlap: Overlap) -> str:
    return _count(overlap.total, "prompt", f"in both {pair}{_share(overlap)}: kept in both")


def _phrase_line(other: str, hit: SharedPhrase) -> str:
    examples = ", ".join(
        f"{shown(pool_id, 40)} and {shown(set_id, 40)}: {shown(phrase, 120)}"
        for pool_id, set_id, phrase in hit.examples
    )
    tail = f"with {PHRASE_WORDS} words in a row of {other}: kept; the first: {examples}"
    return _count(hit.prompts, "pool prompt", tail)


@dataclass(slots=True)
class PromptSets:
    """Every prompt of a run. Ids are unique within a set; two sets may share prompts and ids."""

    pool: list[Prompt]
    validation: dict[str, list[Prompt]] = field(default_factory=dict)
    test: dict[str, list[Prompt]] = field(default_factory=dict)
    notes: PromptNotes = field(default_factory=PromptNotes)

    def heldout_sets(self) -> list[list[Prompt]]:
        """Return the validation and test sets, whose questions are never trained on."""
        return [*self.validation.values(), *self.test.values()]

    def named(self) -> dict[str, list[Prompt]]:
        """Return all sets under the names that notes and errors use."""
        return {
            POOL: self.pool,
            **{f"validation {name}": prompts for name, prompts in self.validation.items()},
            **{f"test {name}": prompts for name, prompts in self.test.items()},
        }

    def without_unreadable(self, readable: Mapping[str, list[Prompt]]) -> PromptSets:
        """Return the sets with these prompts, by the names of `named`; the rest is counted."""
        notes = replace(self.notes, unreadable={}, sizes=dict(self.notes.sizes))
        for name, prompts in self.named().items():
            notes.sizes[name] = len(readable[name])
            if dropped := len(prompts) - len(readable[name]):
                notes.unreadable[name] = dropped
        return replace(
            self,
            pool=readable[POOL],
            validation={n: readable[f"validation {n}"] for n in self.validation},
            test={n: readable[f"test {n}"] for n in self.test},
            notes=notes,
        )


@dataclass(frozen=True, slots=True)
class _Texts:
    """The questions of one set: `exact` text by prompt id, and both forms for look-up."""

    exact: dict[str, str]
    normal: dict[str, str]

    def overlap(self, other: _Texts) -> dict[str, bool]:
        """Return the ids whose text is also in `other`: True if word for word, else False."""
        exact, normal = set(other.exact.values()), set(other.normal.values())
        return {i: self.exact[i] in exact for i, text in self.normal.items() if text in normal}


def load_prompt_sets(
    config: PromptsConfig, seed: int, base: Path | None = None, *, templated: bool = False
) -> PromptSets:
    """Load every set of a run, drop duplicates, and handle overlap as `config.overlap` says.

    `base` is the config's folder. With `templated`, for a model with a chat template, text becomes
    a user message unless its source says `chat: false`.

    Raises InputError if a source cannot be read, a set is empty, the config makes overlap an error,
    or removing it leaves no pool.
    """
    notes = PromptNotes(overlap_action=config.overlap)
    sources = {POOL: config.pool}
    sources |= {f"validation {name}": s for name, s in config.validation.items()}
    sources |= {f"test {name}": s for name, s in config.test.items()}
    loaded = {
        name: _load_set(name, s, seed, base, notes, config.limit, templated)
        for name, s in sources.items()
    }
    prompts = {name: prompts for name, (prompts, _) in loaded.items()}
    texts = {name: texts for name, (_, texts) in loaded.items()}
    notes.shared_ids = _shared_ids(prompts)
    _note_between(texts, notes)
    pool = _without_overlap(prompts[POOL], texts, notes)
    _note_phrases(pool, texts, notes)
    sets = PromptSets(
        pool,
        {name: prompts[f"validation {name}"] for name in config.validation},
        {name: prompts[f"test {name}"] for name in config.test},
        notes,
    )
    notes.sizes = {name: len(prompts) for name, prompts in sets.named().items()}
    return sets


def _load_set(
    name: str,
    sources: Sequence[PromptSource],
    seed: int,
    base: Path | None,
    notes: PromptNotes,
    limit: int | None,
    templated: bool,
) -> tuple[list[Prompt], _Texts]:
    """Load one set from all its sources, without duplicates, `limit` prompts of it."""
    all_prompts: list[Prompt] = []
    texts: dict[str, str] = {}
    for place, source in enumerate(sources):
        source_seed = derive_seed(seed, "prompts", name, place)
        loaded = load_source(source, source_seed, base, templated=templated, notes=notes.rows)
        all_prompts += loaded
        texts |= {p.prompt_id: question_text(p, source.template) for p in loaded}
    if not all_prompts:
        raise InputError(f"the set {name} has no prompts; give it a source with at least one row")
    prompts, duplicates = deduplicate(all_prompts, f"the set {name}")
    if duplicates:
        notes.duplicates[name] = duplicates
    prompts = subsample(prompts, limit, derive_seed(seed, "limit", name))
    disputed = sum(n > 1 for n in Counter(nfc(p.content) for p in prompts).values())
    if disputed:
        notes.disputed[name] = disputed
    exact = {p.prompt_id: texts[p.prompt_id] for p in prompts}
    return prompts, _Texts(exact, {i: normalised(t) for i, t in exact.items()})


def _shared_ids(sets: dict[str, list[Prompt]]) -> int:
    """Count ids that mean different prompts in different sets."""
    contents: dict[str, set[str]] = {}
    for prompts in sets.values():
        for prompt in prompts:
            contents.setdefault(prompt.prompt_id, set()).add(nfc(prompt.content))
    return sum(len(texts) > 1 for texts in contents.values())


def _note_between(texts: dict[str, _Texts], notes: PromptNotes) -> None:
    """Count what validation and test sets share; it stays in both, and is always reported."""
    for left in (n for n in texts if n.startswith("validation ")):
        for right in (n for n in texts if n.startswith("test ")):
            shared = texts[left].overlap(texts[right])
            if shared:
                notes.between[f"{left} and {right}"] = _overlap_counts(shared)


def _note_phrases(pool: list[Prompt], texts: dict[str, _Texts], notes: PromptNotes) -> None:
    """Note which test sets share phrases with what is left of the pool."""
    questions = {p.prompt_id: texts[POOL].normal[p.prompt_id] for p in pool}
    for name in (n for n in texts if n.startswith("test ")):
        if hit := shared_phrases(questions, texts[name].normal):
            notes.phrases[name] = hit


def _overlap_counts(is_exact: dict[str, bool]) -> Overlap:
    exact = sum(is_exact.values())
    return Overlap(exact, len(is_exact) - exact)


def _without_overlap(
    pool: list[Prompt], texts: dict[str, _Texts], notes: PromptNotes
) -> list[Prompt]:
    """Return the pool without the prompts whose text is also in another set."""
    shared: set[str] = set()
    for name in (n for n in texts if n != POOL):
        in_both = texts[POOL].overlap(texts[name])
        if in_both:
            notes.overlap[name] = _overlap_counts(in_both)
            shared |= in_both.keys()
    if not shared or notes.overlap_action == "keep":
        return pool
    if notes.overlap_action == "error":
        raise _overlap_error(pool, shared, notes)
    notes.overlap_removed = len(shared)
    rest = [p for p in pool if p.prompt_id not in shared]
    if not rest:
        raise InputError(
            f"all {len(pool)} pool prompts are also in {', '.join(notes.overlap)}, so that none "
            "is left to train on; give a separate pool, or set prompts.overlap=keep"
        )
    return rest


def _overlap_error(pool: list[Prompt], shared: set[str], notes: PromptNotes) -> InputError:
    first = next(p for p in pool if p.prompt_id in shared)
    return InputError(
        f"{len(shared)} pool prompts are also in {', '.join(notes.overlap)} (the first is "
        f"{first.prompt_id!r}) and prompts.overlap is error; remove them, or set "
        "prompts.overlap=remove"
    )


def content_key(prompt: Prompt) -> tuple[str, str]:
    """Return what two prompts must share to be the same: the text and the answer."""
    return (nfc(prompt.content), nfc(prompt.answer))


def load_prompts(
    path: str | Path, seed: int = 0, *, tokenizer: Any = None, **columns: Any
) -> list[Prompt]:
    """Read prompts from a file, a folder or a pattern; `columns` as in the config's sources.

    With the `tokenizer` of a model that has a chat template, text becomes a user message, as in a
    run; `chat=False` leaves it as it is. Duplicates by content are left out. A warning says which
    of this happened, to how many rows.
    """
    require_kind(path, (str, Path), "path", "give one path or pattern; write other rows to a file")
    if isinstance(tokenizer, str | Path):
        raise InputError(f"tokenizer is {shown(tokenizer, 60)}; give a tokenizer: policy.tokenizer")
    notes: list[str] = []
    templated = has_chat_template(tokenizer)
    try:
        source = PromptSource.model_validate({"path": str(path), **columns})
    except ValidationError as error:
        reasons = "; ".join(map(_wrong_column, error.errors()))
        raise InputError(f"prompts of {path}: {reasons}") from None
    loaded = load_source(source, seed, templated=templated, notes=notes)
    prompts, duplicates = deduplicate(loaded, str(path))
    if duplicates:
        notes.append(f"{path}: {plural(duplicates, 'duplicate prompt')} left out")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return prompts


def _wrong_column(problem: Mapping[str, Any]) -> str:
    """What pydantic says of one of the `columns`; of an unknown one which there are."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown argument {name}; allowed: {', '.join(sorted(PromptSource.model_fields))}"
    return f"{name} {message_of(problem)}".strip()


def deduplicate(prompts: Iterable[Prompt], name: str) -> tuple[list[Prompt], int]:
    """Keep the first of prompts with the same content; return them and how many were dropped.

    Raises InputError if two prompts with different content have the same id.
    """
    by_id: dict[str, Prompt] = {}
    seen: set[tuple[str, str]] = set()
    dropped = 0
    for prompt in prompts:
        earlier = by_id.get(prompt.prompt_id)
        key = content_key(prompt)
        if earlier is not None and content_key(earlier) != key:
            raise _collision(prompt, earlier, name)
        if key in seen:
            dropped += 1
            continue
        seen.add(key)
        by_id[prompt.prompt_id] = prompt
    return list(by_id.values()), dropped


def _collision(prompt: Prompt, earlier: Prompt, name: str) -> InputError:
    first, second = (f"{p.content[:60]!r} -> {p.answer[:20]!r}" for p in (earlier, prompt))
    return InputError(
        f"{name}: two different prompts have the id {prompt.prompt_id!r} ({first} and "
        f"{second}); make the ids unique, or remove the id column so that ids come from the content"
    )


def question_text(prompt: Prompt, template: str | None) -> str:
    """Return what the prompt asks, without system message and template.

    Sets often share questions and differ in the text around them; that must not hide overlap.
    """
    if prompt.prompt is not None:
        return _untemplated(prompt.prompt, template)
    turns = [m for m in prompt.messages or () if m["role"] != "system"]
    return "\n".join(
        _untemplated(m["content"], template) if m["role"] == "user" else m["content"] for m in turns
    )


def _untemplated(text: str, template: str | None) -> str:
    before, _, after = (template or "{prompt}").partition("{prompt}")
    return text.removeprefix(before).removesuffix(after)
