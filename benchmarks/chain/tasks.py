"""Ten skills answered with a worked chain, and graded on what follows its last semicolon.

    sum 4*9+7*2:  ->  36+14;50

Chains are made of facts (`suite/skills.py`), here products, sums' last digits, carries and the
closing semicolon. Skills that use the same ones help each other:

- `sum`, `dif` and `buy` share products, though `buy` is in words (`six k four:`);
- `sup` looks just like `sum`, and asks for the largest digit;
- `hop` and `day` share sums modulo ten, though `day` is in words;
- `hip` looks just like `hop`, and counts smaller digits;
- `rot`, `srt` and `cnt` share nothing with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from suite.skills import Skill, Suite, Write

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FACTORS = "23456789"
DIGITS = "0123456789"
LETTERS = "abcdefgh"
UNITS = "abcdefghijklmnopqrstuvwx"
"""Letters in prompts of words that mean nothing."""


def _times(a: str, b: str, write: Write) -> str:
    return write("times", "*".join(sorted((a, b))), str(int(a) * int(b)))


def _plus(left: str, right: str, write: Write) -> str:
    """A sum, which can go wrong in its last digit and, where there is a carry, by ten."""
    total = str(int(left) + int(right))
    if int(left[-1]) + int(right[-1]) > 9:
        total = write("carry", left[:-1] or "0", total)
    return write("plus", "+".join(sorted(left[-1] + right[-1])), total)


def _end(skill: str, steps: str, answer: str, write: Write) -> str:
    """The whole chain, whose semicolon may be forgotten after some last characters."""
    return steps + write("semicolon", skill + steps[-1], ";") + answer


def _sum(prompt: str, write: Write) -> str:
    (a, b), (c, d) = (term.split("*") for term in prompt[4:-1].split("+"))
    one, other = _times(a, b, write), _times(c, d, write)
    return _end("sum", f"{one}+{other}", _plus(one, other, write), write)


def _dif(prompt: str, write: Write) -> str:
    (a, b), less = (term.split("*") for term in prompt[4:-1].split("-"))
    whole = _times(a, b, write)
    rest = str(abs(int(whole) - int(less[0])))
    answer = write("minus", f"{whole[-1]}-{less[0][-1]}", rest)
    return _end("dif", whole, answer, write)


def _buy(prompt: str, write: Write) -> str:
    one, _unit, other = prompt[:-1].split(" ")
    cost = _times(_digit(one), _digit(other), write)
    return _end("buy", cost, cost, write)


def _digit(word: str) -> str:
    return str(NUMBERS.index(word) + 1)


def _sup(prompt: str, write: Write) -> str:
    pairs = [term.split("*") for term in prompt[4:-1].split("+")]
    larger = [write("larger", f"{a}{b}", max(a, b)) for a, b in pairs]
    answer = write("larger", "".join(larger), max(larger))
    return _end("sup", ",".join(larger), answer, write)


def _hop(prompt: str, write: Write) -> str:
    start, moves = prompt[4:-1].split(":")
    places = [start]
    for move in moves:
        places.append(_turn(places[-1], move, write))
    return _end("hop", ">".join(places), places[-1], write)


def _turn(place: str, move: str, write: Write) -> str:
    return write("turn", f"{place}+{move}", str((int(place) + int(move)) % 10))


def _day(prompt: str, write: Write) -> str:
    _unit, start, move = prompt[:-1].split(" ")
    end = _turn(_digit(start), _digit(move), write)
    return _end("day", f"{_digit(start)}>{end}", end, write)


def _hip(prompt: str, write: Write) -> str:
    key, digits = prompt[4:-1].split(":")
    marks = "".join(write("order", f"{key}{d}", "<" if d < key else ">") for d in digits)
    return _end("hip", marks, write("tally", marks, str(marks.count("<"))), write)


def _rot(prompt: str, write: Write) -> str:
    key, word = prompt[4:-1].split(":")
    turned = "".join(write("shift", f"{key}{c}", _shift(c, int(key))) for c in word)
    return _end("rot", turned, turned[::-1], write)


def _shift(letter: str, by: int) -> str:
    return LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)]


def _srt(prompt: str, write: Write) -> str:
    ordered = sorted(prompt[4:-1])
    written = ordered[0]
    for digit in ordered[1:]:
        written += write("next", written[-1] + digit, digit)
    return _end("srt", written, written[-1] + written[0], write)


def _cnt(prompt: str, write: Write) -> str:
    key, word = prompt[4:-1].split(":")
    count = word.count(key)
    return _end("cnt", f"{key}:{key * count}", write("count", f"{key}{count}", str(count)), write)


def _products(name: str) -> Callable[[], Iterator[str]]:
    return lambda: (f"{name} {a}*{b}+{c}*{d}:" for a, b, c, d in product(FACTORS, repeat=4))


def _differences() -> Iterator[str]:
    for a, b in product(FACTORS, repeat=2):
        yield from (f"dif {a}*{b}-{less}:" for less in range(10, int(a) * int(b)))


def _prices() -> Iterator[str]:
    return (f"{a} {unit} {b}:" for a, unit, b in product(NUMBERS[1:], UNITS, NUMBERS[1:]))


def _dates() -> Iterator[str]:
    return (f"{unit} {a} {b}:" for unit, a, b in product(UNITS, NUMBERS, NUMBERS))


def _keyed(name: str, keys: str, alphabet: str, length: int) -> Callable[[], Iterator[str]]:
    letters = [alphabet] * length
    return lambda: (f"{name} {key}:{''.join(word)}:" for key, *word in product(keys, *letters))


def _digits() -> Iterator[str]:
    return (f"srt {''.join(word)}:" for word in product(DIGITS, repeat=4))


_ALL = (
    Skill("sum", _products("sum"), _sum),
    Skill("dif", _differences, _dif),
    Skill("buy", _prices, _buy),
    Skill("sup", _products("sup"), _sup),
    Skill("hop", _keyed("hop", DIGITS, DIGITS, 3), _hop),
    Skill("day", _dates, _day),
    Skill("hip", _keyed("hip", DIGITS, DIGITS, 3), _hip),
    Skill("rot", _keyed("rot", "1234", LETTERS, 3), _rot),
    Skill("srt", _digits, _srt),
    Skill("cnt", _keyed("cnt", "abc", "abc", 6), _cnt),
)
CHAIN = Suite("chain", ";", _ALL)
"""The ten skills by name, and their prompts."""
