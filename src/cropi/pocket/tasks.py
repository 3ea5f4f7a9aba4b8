"""Twelve generated skills, each a finite space of short prompts with one right answer.

A reinforcement learning run is only worth watching when some prompts are solved, some within reach
and some hopeless, and when the test prompts were never trained on. Both hold here: skills differ
in difficulty and have several levels, and a keyed hash of the prompt's text alone decides which
split it belongs to. No seed, size or order can move a prompt across splits, so
`pretrain`, `pool`, `validation` and `test` are disjoint by construction. Order comes from hashes
too; Python's generator is used once, under fixed seeds, to thin out levels that are too large.

This module needs neither torch nor any other third-party package.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

SPLIT_SHARES: dict[str, float] = {"pretrain": 0.40, "pool": 0.30, "validation": 0.05, "test": 0.25}
"""Share of every skill's prompts in each split; the shares sum to one."""

LEVEL_SIZE = 8_000
"""Prompts taken from a level whose raw space is larger, so that levels weigh about the same."""

_SPLIT_KEY = b"cropi-pocket-split-v1"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Level:
    """One difficulty of a skill: `render` turns each index below `raw_size` into a prompt."""

    name: str
    raw_size: int
    render: Callable[[int], str]

    def prompts(self) -> list[str]:
        """The level's distinct prompts, at most `LEVEL_SIZE`, spread evenly over the raw space."""
        count = min(self.raw_size, LEVEL_SIZE)
        indices = random.Random(f"{self.name}/{self.raw_size}").sample(range(self.raw_size), count)
        return list(dict.fromkeys(self.render(index) for index in indices))


@dataclass(frozen=True)
class Skill:
    """Prompts that share their first character, and the function that solves them."""

    name: str
    levels: tuple[Level, ...]
    solve: Callable[[str], str]

    def prompts(self) -> dict[str, str]:
        """Every distinct prompt of the skill, mapped to the name of its level."""
        return {prompt: level.name for level in self.levels for prompt in level.prompts()}

    def answer(self, prompt: str) -> str:
        """The right answer to one of the skill's prompts."""
        return self.solve(prompt[1:].rstrip("="))


def _number(index: int, digits: int) -> int:
    """The index-th number with exactly that many digits (no leading zero)."""
    return int(10 ** (digits - 1)) + index


def _binary(prefix: str, operator: str, left: int, right: int) -> Level:
    """A level of two-operand arithmetic with `left`- and `right`-digit operands."""
    rights = 9 * 10 ** (right - 1)

    def render(index: int) -> str:
        first, second = divmod(index, rights)
        return f"{prefix}{_number(first, left)}{operator}{_number(second, right)}="

    return Level(f"{left}x{right} digits", 9 * 10 ** (left - 1) * rights, render)


def _ordered(prefix: str, left: int, right: int) -> Level:
    """A level of subtraction; operands are swapped where the result would be negative."""
    plain = _binary(prefix, "-", left, right)

    def render(index: int) -> str:
        first, second = (int(part) for part in plain.render(index)[1:-1].split("-"))
        return f"{prefix}{max(first, second)}-{min(first, second)}="

    return Level(plain.name, plain.raw_size, render)


def _word(index: int, alphabet: str, length: int) -> str:
    """The index-th string of that length over the alphabet."""
    letters = []
    for _ in range(length):
        index, place = divmod(index, len(alphabet))
        letters.append(alphabet[place])
    return "".join(letters)


def _string(prefix: str, alphabet: str, length: int, keys: str = "") -> Level:
    """A level of string prompts, each after one of `keys` and a colon if there are keys."""
    words = len(alphabet) ** length

    def render(index: int) -> str:
        key, place = divmod(index, words)
        head = f"{keys[key]}:" if keys else ""
        return f"{prefix}{head}{_word(place, alphabet, length)}="

    return Level(f"length {length}", words * max(1, len(keys)), render)


def _triple(prefix: str, digits: int) -> Level:
    """A level of three comma-separated numbers."""
    numbers = 9 * 10 ** (digits - 1)

    def render(index: int) -> str:
        high, low = divmod(index, numbers)
        places = (*divmod(high, numbers), low)
        return prefix + ",".join(str(_number(place, digits)) for place in places) + "="

    return Level(f"{digits} digits", numbers**3, render)


def _operands(body: str, operator: str) -> tuple[int, int]:
    left, right = body.split(operator)
    return int(left), int(right)


def _add(body: str) -> str:
    left, right = _operands(body, "+")
    return str(left + right)


def _subtract(body: str) -> str:
    left, right = _operands(body, "-")
    return str(left - right)


def _multiply(body: str) -> str:
    left, right = _operands(body, "*")
    return str(left * right)


def _modulo(body: str) -> str:
    left, right = _operands(body, "%")
    return str(left % right)


def _compare(body: str) -> str:
    left, right = _operands(body, "?")
    return "<" if left < right else ">" if left > right else "="


def _copy(body: str) -> str:
    return body


def _reverse(body: str) -> str:
    return body[::-1]


def _sort(body: str) -> str:
    return "".join(sorted(body))


def _largest(body: str) -> str:
    return str(max(int(number) for number in body.split(",")))


def _count(body: str) -> str:
    key, word = body.split(":")
    return str(word.count(key))


def _digit_sum(body: str) -> str:
    return str(sum(int(digit) for digit in body))


def _shift(body: str) -> str:
    """Add the key to every digit, modulo ten (a Caesar cipher on digits)."""
    key, word = body.split(":")
    return "".join(str((int(digit) + int(key)) % 10) for digit in word)


_DIGITS = "0123456789"
_ALL = (
    Skill("copy", tuple(_string("c", _LETTERS, n) for n in (4, 5, 6)), _copy),
    Skill("max", tuple(_triple("m", n) for n in (2, 3)), _largest),
    Skill("compare", tuple(_binary("g", "?", n, n) for n in (2, 3, 4)), _compare),
    Skill("count", tuple(_string("n", "012", n, keys="012") for n in (7, 8, 9)), _count),
    Skill("add", tuple(_binary("a", "+", *n) for n in ((2, 2), (3, 2), (3, 3))), _add),
    Skill("subtract", tuple(_ordered("b", *n) for n in ((2, 2), (3, 2), (3, 3))), _subtract),
    Skill("reverse", tuple(_string("r", _LETTERS, n) for n in (4, 5, 6)), _reverse),
    Skill("sort", tuple(_string("s", _DIGITS, n) for n in (4, 5, 6)), _sort),
    Skill("digitsum", tuple(_string("d", _DIGITS, n) for n in (4, 5, 6)), _digit_sum),
    Skill("shift", tuple(_string("k", _DIGITS, n, keys="12345") for n in (3, 4, 5)), _shift),
    Skill("modulo", tuple(_binary("p", "%", n, 2) for n in (3, 4)), _modulo),
    Skill("multiply", tuple(_binary("x", "*", *n) for n in ((3, 2), (3, 3))), _multiply),
)

SKILLS: dict[str, Skill] = {skill.name: skill for skill in _ALL}
"""The twelve skills by name; a prompt's first character shows its skill."""

TARGETS: tuple[str, str] = ("sort", "shift")
"""The skills a run wants to improve: partly solved at the start, with much within reach."""


def split_of(prompt: str) -> str:
    """The split that a prompt belongs to, decided by a keyed hash of its text alone."""
    digest = blake2b(prompt.encode(), key=_SPLIT_KEY, digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"  # rounding may leave a last sliver


@cache
def _prompts_by_split(skill: str) -> dict[str, dict[str, str]]:
    """A skill's prompts, with their levels, sorted into the splits; computed once per process."""
    splits: dict[str, dict[str, str]] = {split: {} for split in SPLIT_SHARES}
    for prompt, level in SKILLS[skill].prompts().items():
        splits[split_of(prompt)][prompt] = level
    return splits


def available(split: str, skill: str, levels: Sequence[str] | None = None) -> int:
    """How many distinct prompts of a skill, of these levels if given, a split has.

    Raises:
        ValueError: the split, the skill or a level is unknown, or a level is given twice.
    """
    _check_name("split", split, SPLIT_SHARES)
    _check_name("skill", skill, SKILLS)
    return len(_prompts(split, skill, levels))


def _prompts(split: str, skill: str, levels: Sequence[str] | None) -> dict[str, str]:
    """The split's prompts of a skill, with their levels: of all levels where None."""
    prompts = _prompts_by_split(skill)[split]
    if levels is None:
        return prompts
    names = [level.name for level in SKILLS[skill].levels]
    for level in levels:
        _check_name(f"level of {skill}", level, names)
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(f"levels={list(levels)}: name at least one level, and each once")
    return {prompt: level for prompt, level in prompts.items() if level in levels}


def rows(
    split: str,
    skills: Iterable[str] | None = None,
    per_skill: int | None = None,
    seed: int = 0,
    levels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Prompt rows of one split, the same number for every skill, one skill after the other in turn.

    Rows with a smaller `per_skill` are a prefix of the rows with a larger one under the same seed.

    Args:
        split: `pretrain`, `pool`, `validation` or `test`.
        skills: names of skills; default: all twelve.
        per_skill: rows per skill; default: as many as every chosen skill has.
        seed: decides which of the split's prompts are drawn and in which order.
        levels: names of levels, which every chosen skill must have; default: all.

    Returns:
        Dicts with `prompt_id` (unique), `prompt`, `answer`, `source` (`pocket/<skill>`) and
        `extra` (a dict with the skill and the level).

    Raises:
        ValueError: a name is unknown or repeated, or there are fewer rows than `per_skill`.
    """
    names = _skill_names(skills)
    counts = {name: available(split, name, levels) for name in names}
    wanted = min(counts.values(), default=0) if per_skill is None else per_skill
    for name, count in counts.items():
        if not 0 <= wanted <= count:
            raise ValueError(
                f"per_skill={wanted} for skill {name!r}: split {split!r} has {count} prompts"
                f"{' of these levels' if levels else ''}; ask for 0 to {count}"
            )
    columns = [_draw(split, name, wanted, seed, levels) for name in names]
    return [row for turn in zip(*columns, strict=True) for row in turn]


def _draw(
    split: str, skill: str, count: int, seed: int, levels: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The split's first `count` rows of a skill in the order of a hash keyed by the seed."""
    key = blake2b(f"{seed}".encode(), digest_size=16).digest()

    def place(pair: tuple[str, str]) -> bytes:
        return blake2b(pair[0].encode(), key=key, digest_size=12).digest()

    drawn = sorted(_prompts(split, skill, levels).items(), key=place)[:count]
    return [_row(skill, prompt, level) for prompt, level in drawn]


def _row(skill: str, prompt: str, level: str) -> dict[str, Any]:
    return {
        "prompt_id": f"pocket-{skill}-{prompt.rstrip('=')}",
        "prompt": prompt,
        "answer": SKILLS[skill].answer(prompt),
        "source": f"pocket/{skill}",
        "extra": {"skill": skill, "level": level},
    }


def _skill_names(skills: Iterable[str] | None) -> list[str]:
    names = list(SKILLS) if skills is None else list(skills)
    for name in names:
        _check_name("skill", name, SKILLS)
    if len(set(names)) < len(names):
        raise ValueError(f"skills={names}: name each skill once")
    return names


def _check_name(kind: str, name: str, allowed: Iterable[str]) -> None:
    if name not in allowed:
        raise ValueError(f"unknown {kind} {name!r}; allowed: {', '.join(allowed)}")
