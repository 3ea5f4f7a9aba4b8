"""The pool, the validation sets and the test sets: loaded, made unique, kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cropi.errors import InputError
from cropi.prompts.notes import Overlap, PromptNotes
from cropi.prompts.settings import PromptsConfig, PromptSource
from cropi.prompts.sources import limited, load_source
from cropi.prompts.uniqueness import distinct, normalised, question_text
from cropi.schema import Prompt, derive_seed

POOL = "pool"


@dataclass(slots=True)
class PromptSets:
    """Every prompt of a run. Ids are unique within a set; two sets may share prompts and ids."""

    pool: list[Prompt]
    validation: dict[str, list[Prompt]] = field(default_factory=dict)
    test: dict[str, list[Prompt]] = field(default_factory=dict)
    notes: PromptNotes = field(default_factory=PromptNotes)

    def judging(self) -> list[list[Prompt]]:
        """Return the validation and test sets, whose questions nothing may be trained on."""
        return [*self.validation.values(), *self.test.values()]

    def named(self) -> dict[str, list[Prompt]]:
        """Return all sets under the names that notes and errors use."""
        return {
            POOL: self.pool,
            **{f"validation {name}": prompts for name, prompts in self.validation.items()},
            **{f"test {name}": prompts for name, prompts in self.test.items()},
        }


@dataclass(frozen=True, slots=True)
class _Texts:
    """The questions of one set: `exact` text by prompt id, and both forms for look-up."""

    exact: dict[str, str]
    normal: dict[str, str]

    def overlap(self, other: _Texts) -> dict[str, bool]:
        """Return the ids whose text stands in `other`: True word for word, False normalised."""
        exact, normal = set(other.exact.values()), set(other.normal.values())
        return {i: self.exact[i] in exact for i, text in self.normal.items() if text in normal}


def load_prompt_sets(config: PromptsConfig, seed: int, base: Path | None = None) -> PromptSets:
    """Load every set of a run, drop duplicates, and settle overlap as `config.overlap` says.

    `base` is the config's folder. Raises InputError if a source cannot be read, a set is empty,
    overlap is an error by config, or removing it leaves no pool.
    """
    notes = PromptNotes(overlap_action=config.overlap)
    sources = {POOL: config.pool}
    sources |= {f"validation {name}": s for name, s in config.validation.items()}
    sources |= {f"test {name}": s for name, s in config.test.items()}
    loaded = {
        name: _load_set(name, s, seed, base, notes, config.limit) for name, s in sources.items()
    }
    prompts = {name: prompts for name, (prompts, _) in loaded.items()}
    texts = {name: texts for name, (_, texts) in loaded.items()}
    notes.shared_ids = _shared_ids(prompts)
    _note_between(texts, notes)
    sets = PromptSets(
        _without_overlap(prompts[POOL], texts, notes),
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
) -> tuple[list[Prompt], _Texts]:
    """Load one set from all its sources, without duplicates, `limit` prompts of it."""
    everything: list[Prompt] = []
    texts: dict[str, str] = {}
    for place, source in enumerate(sources):
        prompts = load_source(source, derive_seed(seed, "prompts", name, place), base)
        everything += prompts
        texts |= {p.prompt_id: question_text(p, source.template) for p in prompts}
    if not everything:
        raise InputError(f"the set {name} holds no prompts; give it a source with at least one row")
    kept, duplicates = distinct(everything, f"the set {name}")
    if duplicates:
        notes.duplicates[name] = duplicates
    kept = limited(kept, limit, derive_seed(seed, "limit", name))
    disputed = sum(n > 1 for n in Counter(p.content for p in kept).values())
    if disputed:
        notes.disputed[name] = disputed
    exact = {p.prompt_id: texts[p.prompt_id] for p in kept}
    return kept, _Texts(exact, {i: normalised(t) for i, t in exact.items()})


def _shared_ids(sets: dict[str, list[Prompt]]) -> int:
    """Count ids that mean different prompts in different sets."""
    contents: dict[str, set[str]] = {}
    for prompts in sets.values():
        for prompt in prompts:
            contents.setdefault(prompt.prompt_id, set()).add(prompt.content)
    return sum(len(found) > 1 for found in contents.values())


def _note_between(texts: dict[str, _Texts], notes: PromptNotes) -> None:
    """Count what validation and test sets share; it is kept, and always reported."""
    for left in (n for n in texts if n.startswith("validation ")):
        for right in (n for n in texts if n.startswith("test ")):
            found = texts[left].overlap(texts[right])
            if found:
                notes.between[f"{left} and {right}"] = _counted(found)


def _counted(found: dict[str, bool]) -> Overlap:
    exact = sum(found.values())
    return Overlap(exact, len(found) - exact)


def _without_overlap(
    pool: list[Prompt], texts: dict[str, _Texts], notes: PromptNotes
) -> list[Prompt]:
    """Return the pool without the prompts whose text stands in another set."""
    shared: set[str] = set()
    for name in (n for n in texts if n != POOL):
        found = texts[POOL].overlap(texts[name])
        if found:
            notes.overlap[name] = _counted(found)
            shared |= found.keys()
    if not shared or notes.overlap_action == "keep":
        return pool
    if notes.overlap_action == "error":
        raise _overlap_error(pool, shared, notes)
    notes.overlap_removed = len(shared)
    rest = [p for p in pool if p.prompt_id not in shared]
    if not rest:
        raise InputError(
            f"all {len(pool)} pool prompts stand in {', '.join(notes.overlap)} too, so that none "
            "is left to train on; give a pool of its own, or set prompts.overlap=keep"
        )
    return rest


def _overlap_error(pool: list[Prompt], shared: set[str], notes: PromptNotes) -> InputError:
    first = next(p for p in pool if p.prompt_id in shared)
    return InputError(
        f"{len(shared)} pool prompts stand in {', '.join(notes.overlap)} too (the first is "
        f"{first.prompt_id!r}) and prompts.overlap is error; remove them, or set "
        "prompts.overlap=remove"
    )
