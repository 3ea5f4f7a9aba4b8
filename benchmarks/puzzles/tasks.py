"""Twelve skills on strings, digits, logic and tables; a prompt's form alone says what to do.

    4725%7:  ->  4530=0

Five write a worked chain and the answer after `=`; seven answer plainly. Some share facts
(`suite/skills.py`), whatever they look like:

- `mod` and `div` share remainders of one digit after another;
- `cap` looks just like `mod`, and shares nothing with it;
- `log` and `pol` share gates, though `pol` writes operators first (`^|&tftf:`);
- `piv` and `dic` share which of two letters is first;
- `tab` and `com` share where a letter of a table leads;
- `rle`, `brk` and `hex` share nothing with the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import groupby, product

from suite.skills import Skill, Suite, Write

DIGITS = "0123456789"
LETTERS = "abcdefgh"
STOPS = "abcdef"
"""What tables lead to."""
CLOSING = dict(zip("([{<", ")]}>", strict=True))
DRAWN = 12_000
"""Prompts drawn from spaces that are too large to spell out."""


def _rest(rest: str, digit: str, divisor: str, write: Write) -> str:
    """The remainder after one more digit."""
    right = int(rest + digit) % int(divisor)
    return write("rest", f"{rest}{digit}%{divisor}", str(right))


def _mod(prompt: str, write: Write) -> str:
    digits, divisor = prompt[:-1].split("%")
    rests = [""]
    for digit in digits:
        rests.append(_rest(rests[-1], digit, divisor, write))
    return f"{''.join(rests)}={rests[-1]}"


def _div(prompt: str, write: Write) -> str:
    digits, divisor = prompt[:-1].split("/")
    steps, quotient, rest = "", "", ""
    for digit in digits:
        part = str(int(rest + digit) // int(divisor))
        quotient += write("part", f"{rest}{digit}/{divisor}", part)
        rest = _rest(rest, digit, divisor, write)
        steps += quotient[-1] + rest
    return f"{steps}={quotient}"


def _cap(prompt: str, write: Write) -> str:
    digits, key = prompt[:-1].split("!")
    places = enumerate(digits)
    return "".join(write("cap", f"{place}{d}!{key}", min(d, key)) for place, d in places)


def _gates(values: str, operators: str, write: Write) -> str:
    """The running value of an expression from left to right, after every operator."""
    running = values[0]
    for place, (operator, value) in enumerate(zip(operators, values[1:], strict=True)):
        left, right = (letter == "t" for letter in (running[-1], value))
        result = {"&": left and right, "|": left or right, "^": left != right}[operator]
        running += write("gate", f"{place}{running[-1]}{operator}{value}", "ft"[result])
    return running[1:]


def _log(prompt: str, write: Write) -> str:
    return _gates(prompt[:-1:2], prompt[1:-1:2], write)


def _pol(prompt: str, write: Write) -> str:
    half = len(prompt) // 2 - 1
    return _gates(prompt[half:-1], prompt[:half][::-1], write)


def _is_less(letter: str, key: str, write: Write) -> str:
    return write("order", f"{key}{letter}", "<" if letter < key else ">")


def _piv(prompt: str, write: Write) -> str:
    """The signs of all letters against the pivot, then the smaller ones before the others."""
    key, word = prompt[:-1].split(":")
    signs = "".join(_is_less(letter, key, write) for letter in word)
    smaller = "".join(c for c, sign in zip(word, signs, strict=True) if sign == "<")
    others = "".join(c for c, sign in zip(word, signs, strict=True) if sign == ">")
    return f"{signs}={smaller}{others}"


def _dic(prompt: str, write: Write) -> str:
    """The first letters that differ, then the word that is first in a dictionary."""
    one, other = prompt[:-1].split("?")
    a, b = next(pair for pair in zip(one, other, strict=True) if pair[0] != pair[1])
    sign = _is_less(b, a, write)
    return f"{a}{b}{sign}={other if sign == '<' else one}"


def _lead(table: str, letter: str, write: Write) -> str:
    end = table[STOPS.index(letter)]
    return write("lead", f"{letter}{end}", end)


def _tab(prompt: str, write: Write) -> str:
    """The way from a letter through the table, four times."""
    table, path = prompt[:-1].split(":")
    for _ in range(4):
        path += _lead(table, path[-1], write)
    return f"{path[1:]}={path[-1]}"


def _com(prompt: str, write: Write) -> str:
    """Where each letter gets through both tables."""
    first, second = prompt[:-1].split(".")
    return "".join(_lead(second, letter, write) for letter in first)


def _rle(prompt: str, write: Write) -> str:
    runs = [(letter, str(len(list(run)))) for letter, run in groupby(prompt[:-1])]
    return "".join(letter + write("run", letter + length, length) for letter, length in runs)


def _brk(prompt: str, write: Write) -> str:
    """What closes the brackets that are still open, the last one first."""
    opened = ""
    for bracket in prompt[:-1]:
        opened = opened + bracket if bracket in CLOSING else opened[:-1]
    places = range(len(opened) - 1, -1, -1)
    return "".join(
        write("close", f"{opened[: place + 1][-2:]}{place}", CLOSING[opened[place]])
        for place in places
    )


def _hex(prompt: str, write: Write) -> str:
    places = enumerate(prompt[1:-1])
    return "".join(write("bits", f"{place}{d}", f"{int(d, 16):04b}") for place, d in places)


def _numbers(sign: str, length: int) -> Iterator[str]:
    numbers = range(10 ** (length - 1), 10**length)
    return (f"{number}{sign}{key}:" for number, key in product(numbers, (6, 7)))


def _infix() -> Iterator[str]:
    for first, *rest in product("tf", *["&|^", "tf"] * 5):
        yield f"{first}{''.join(rest)}:"


def _prefix() -> Iterator[str]:
    return (f"{''.join(parts)}:" for parts in product(*["&|^"] * 4, *["tf"] * 5))


def _pivots() -> Iterator[str]:
    return (f"{key}:{''.join(word)}:" for key, *word in product(LETTERS, repeat=6))


def _pairs() -> Iterator[str]:
    """Two words of four letters that differ first at any place."""
    draw = random.Random("dic")
    for place in range(DRAWN):
        one, other = ("".join(draw.choices(LETTERS, k=4)) for _ in range(2))
        other = one[: place % 4] + other[place % 4 :]
        if one != other:
            yield f"{one}?{other}:"


def _tables() -> Iterator[str]:
    draw = random.Random("tab")
    return (f"{_word(draw, STOPS, 6)}:{_word(draw, STOPS, 1)}:" for _ in range(DRAWN))


def _two_tables() -> Iterator[str]:
    draw = random.Random("com")
    return (f"{_word(draw, STOPS[:5], 5)}.{_word(draw, STOPS[:5], 5)}:" for _ in range(DRAWN))


def _word(draw: random.Random, letters: str, length: int) -> str:
    return "".join(draw.choices(letters, k=length))


def _runs() -> Iterator[str]:
    """Four runs of one to four letters."""
    draw = random.Random("rle")
    for _ in range(DRAWN):
        letters = draw.sample(LETTERS, 4)
        yield "".join(letter * draw.randint(1, 4) for letter in letters) + ":"


def _brackets() -> Iterator[str]:
    """Eight brackets, of which three to five are still open."""
    draw = random.Random("brk")
    for _ in range(DRAWN):
        opened, written = "", ""
        while len(written) < 8:
            opens = not opened or draw.random() < 0.7
            written += draw.choice("([{<") if opens else CLOSING[opened[-1]]
            opened = opened + written[-1] if opens else opened[:-1]
        if 3 <= len(opened) <= 5:
            yield f"{written}:"


def _hexadecimal() -> Iterator[str]:
    return (f"x{number:03x}:" for number in range(16**3))


PUZZLES = Suite(
    "puzzles",
    "=",
    (
        Skill("mod", lambda: _numbers("%", 4), _mod),
        Skill("div", lambda: _numbers("/", 3), _div),
        Skill("cap", lambda: _numbers("!", 4), _cap),
        Skill("log", _infix, _log),
        Skill("pol", _prefix, _pol),
        Skill("piv", _pivots, _piv),
        Skill("dic", _pairs, _dic),
        Skill("tab", _tables, _tab),
        Skill("com", _two_tables, _com),
        Skill("rle", _runs, _rle),
        Skill("brk", _brackets, _brk),
        Skill("hex", _hexadecimal, _hex),
    ),
)
"""The twelve skills by name, and their prompts."""
