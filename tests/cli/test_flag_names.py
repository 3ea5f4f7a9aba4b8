"""Errors of a step's command name its flags and bare settings, never keys of a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from cropi.cli.flag_names import given_in_flags, in_flags
from support.command_line import Command

OPTIONS = ("max_new_tokens", "verifier", "dtype", "temperature")


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("rollout", "lower rollouts.max_new_tokens", "lower --max-new-tokens"),
        ("rollout", "set rollouts.top_p=1", "set top_p=1"),
        ("rollout", "rollouts.parquet row 3", "rollouts.parquet row 3"),
        ("rollout", "see /x/rollouts.top_p/y", "see /x/rollouts.top_p/y"),
        ("rollout", "set verifiers.default", "set --verifier"),
        ("train", "training.engine.grpo.beta = 1", "engine.grpo.beta = 1"),
        ("train", "raise rollouts.temperature", "raise --temperature"),
        ("score", "influence.objective.ratio", "objective.ratio"),
        ("run", "rollouts.max_new_tokens", "rollouts.max_new_tokens"),
    ],
)
def test_keys_become_what_the_command_takes(command: str, message: str, expected: str) -> None:
    assert in_flags(message, command, OPTIONS) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("pick one with `split`, e.g. `split: a b`", "pick one with --split, e.g. --split a b"),
        ("`chat: false` leaves it as text", "--no-chat leaves it as text"),
        ("asks for text; remove `chat`", "asks for text; remove --chat"),
        ("pick it with `answer_regex`", "pick it with --answer-regex"),
        ("name one with `answer`", "name one with --answer-column"),
        ("`tools` makes it a chat", "`tools` makes it a chat"),
        ("name another verifier with verifiers.sources", "name another verifier with --verifier"),
    ],
)
def test_settings_of_a_source_become_flags_where_prompts_are_read(
    message: str, expected: str
) -> None:
    assert in_flags(message, "rollout", (*OPTIONS, "answer_regex", "split")) == expected
    assert in_flags(message, "run", OPTIONS) == message


def test_only_what_was_given_as_a_flag_is_named_as_one() -> None:
    several = "settings has 2 problems: (1) top_p = 2: less; (2) max_new_tokens = 0: more"
    assert given_in_flags("settings: temperature = 0: more", ["temperature"]) == (
        "--temperature = 0: more"
    )
    assert given_in_flags(several, ["max_new_tokens"]) == several.replace(
        "max_n", "--max_n"
    ).replace("--max_new_tokens", "--max-new-tokens")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["rollout", "--model", "pocket", "--prompts", "x", "--temperature", "-1"],
            "--temperature",
        ),
        (["select", "--ratio", "7", "--scores", "x"], "--ratio = 7"),
        (["rollout", "--model", "a\nb", "--prompts", "x"], "--model"),
        (["train", "--model", "pocket", "--prompts", "x", "--selection", "y", "--learning-rate",
          "-1"], "--learning-rate = -1"),
    ],
)  # fmt: skip
def test_a_flag_is_refused_by_its_name(
    cropi: Command, tmp_path: Path, arguments: list[str], words: str
) -> None:
    cropi(*arguments, "--out", tmp_path / "out").refused(words)


@pytest.mark.parametrize("seeds", ["0-99999999999", "5-1", "\u00b2", "1" * 30, "[/]", "-1"])
def test_seeds_that_are_none_are_refused(cropi: Command, seeds: str) -> None:
    cropi("compare", "pocket", f"--seeds={seeds}").refused("--seeds")
