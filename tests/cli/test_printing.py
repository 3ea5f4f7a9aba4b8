"""What is printed is whole: on a terminal of any width, and in any encoding."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cropi.cli import printing
from support.command_line import Command

HEADER = ["strategy", "seeds", "steps to 95%", "acceleration", "tokens", "answer"]
NUMBERS = [
    ["full (baseline)", "3", "200", "-", "2.16M", "8"],
    ["[b]cropi", "1 of 3", "63", "3.17x [2.90, 3.80]", "1,024", "日本"],
]
SENTENCE = ["random", "3", "never", "-", "0", "a sentence that is longer than any terminal is wide"]


def printed(
    monkeypatch: pytest.MonkeyPatch, width: int, header: list[str], rows: list[list[str]]
) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(printing, "make_console", lambda: console)
    printing.print_table(header, rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_no_number_of_a_table_is_cut_or_folded(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = printed(monkeypatch, width, HEADER, NUMBERS)
    assert max(map(len, lines)) <= width
    for row in NUMBERS:
        cells = [re.split(r" {2,}", line)[1:] for line in lines if line.startswith(row[0])]
        assert [cell.strip() for band in cells for cell in band] == row[1:]


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_a_long_text_is_folded_and_not_cut(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = printed(monkeypatch, width, HEADER, [SENTENCE])
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert set(SENTENCE[-1].split()) <= set(words)


def test_a_column_that_does_not_fit_is_beside_the_first_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(printed(monkeypatch, 200, HEADER, NUMBERS)) == 3
    narrow = printed(monkeypatch, 40, HEADER, NUMBERS)
    firsts = sum(line.startswith("strategy") for line in narrow)
    assert firsts == sum(line.startswith("full") for line in narrow) > 1


def test_what_an_encoding_lacks_is_printed_as_an_escape(
    cropi: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "?", "answer": "日本"}\n', encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", screen)
    cropi("verify", rows, "--verifier", "exact").done()
    screen.seek(0)
    assert r"\u65e5\u672c" in screen.read()
