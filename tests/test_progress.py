"""What a run prints: one short line per phase in a log, a live bar on a terminal."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from cropi.progress import ProgressReporter


def log() -> tuple[ProgressReporter, io.StringIO]:
    text = io.StringIO()
    return ProgressReporter(Console(file=text, width=80)), text


def terminal() -> tuple[ProgressReporter, io.StringIO]:
    text = io.StringIO()
    return ProgressReporter(Console(file=text, width=80, force_terminal=True)), text


def test_a_phase_is_one_line_in_a_log() -> None:
    reporter, text = log()
    with reporter.phase("rollouts pool", 10) as bar:
        for done in range(10):
            bar.update(done)
        bar.note = "x" * 100
    (line,) = text.getvalue().splitlines()
    assert line.startswith("  rollouts pool")
    assert line.endswith("x" * 100)


def test_a_long_phase_prints_a_line_after_each_silent_minute_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("cropi.progress.time.monotonic", lambda: now[0])
    reporter, text = log()
    with reporter.phase("GRPO", 400) as bar:
        for second in range(1, 201):
            now[0] = float(second)
            bar.update(second, note=f"reward {second}")
            if second == 90:
                reporter.info("evaluated")
    first, other, later, end = text.getvalue().splitlines()
    assert first.split() == ["GRPO", "60", "s", "60/400", "reward", "60"]
    assert other == "evaluated"
    assert later.split() == ["GRPO", "150", "s", "150/400", "reward", "150"]
    assert end.endswith("reward 200")


def test_text_is_shown_as_it_is() -> None:
    reporter, text = log()
    reporter.info("[bold]no markup[/bold] :smile:")
    reporter.warn("careful")
    assert text.getvalue() == "[bold]no markup[/bold] :smile:\n  ! careful\n"


@pytest.mark.parametrize("kind", [log, terminal])
def test_a_phase_that_fails_does_not_print_its_time_and_restores_the_cursor(kind: object) -> None:
    reporter, text = kind()  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError), reporter.phase("doomed"):
        raise ZeroDivisionError
    printed = text.getvalue()
    assert " s " not in printed
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h")


def test_a_library_silenced_by_redirection_does_not_silence_the_reporter() -> None:
    reporter, text = terminal()
    with reporter.phase("GRPO", 2) as bar, redirect_stdout(io.StringIO()):
        bar.update(1, note="half")
        reporter.info("still here")
    assert "still here" in text.getvalue()


def test_without_a_console_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ProgressReporter()
    reporter.info("hello")
    with reporter.phase("quiet", 3) as bar:
        bar.update(3, note="done")
    assert capsys.readouterr().out == ""
