"""The command line as a whole: names, help, version, and options that stand for settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import cropi
from cropi.cli import app, main
from cropi.cli.options import engine_settings, section, setting
from cropi.errors import InputError
from cropi.evaluation.settings import EvaluationConfig
from cropi.influence.settings import InfluenceConfig
from cropi.rollouts.engines.transformers import TransformersSettings
from cropi.rollouts.settings import RolloutsConfig
from cropi.selection.settings import SelectionConfig
from cropi.settings import Section, default_of
from cropi.training.settings import TrainingConfig


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands())
SAME_AS_SETTING: list[tuple[str, str, type[Section], str]] = [
    ("rollout", "responses", RolloutsConfig, "responses"),
    ("rollout", "max_new_tokens", RolloutsConfig, "max_new_tokens"),
    ("rollout", "temperature", RolloutsConfig, "temperature"),
    ("rollout", "batch_size", TransformersSettings, "batch_size"),
    ("evaluate", "responses", EvaluationConfig, "responses"),
    ("evaluate", "temperature", EvaluationConfig, "temperature"),
    ("evaluate", "max_new_tokens", RolloutsConfig, "max_new_tokens"),
    ("train", "responses", TrainingConfig, "responses"),
    ("train", "learning_rate", TrainingConfig, "learning_rate"),
    ("train", "max_new_tokens", RolloutsConfig, "max_new_tokens"),
    ("select", "ratio", SelectionConfig, "ratio"),
]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def option(command: str, name: str) -> Any:
    return next(p for p in COMMANDS[command].params if p.name == name)


def test_the_version_is_that_of_the_package() -> None:
    outcome = invoke("--version")
    assert outcome.exit_code == 0
    assert outcome.stdout.split() == ["cropi", cropi.__version__]


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "cropi", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"cropi {cropi.__version__}\n"


def test_shells_can_complete() -> None:
    assert "--install-completion" in invoke("--help").stdout
    complete = option("run", "config").shell_complete
    assert [item.value for item in complete(None, "po")] == ["pocket"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    outcome = invoke(*name.split(), "--help")
    assert outcome.exit_code == 0
    assert "Example" in outcome.stdout
    assert f"cropi {name}" in outcome.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    unexplained = [p.name for p in COMMANDS[name].params if not p.help]
    assert unexplained == []


def test_a_policy_is_the_option_model_in_every_command() -> None:
    taking = {name for name, command in COMMANDS.items() if "model" in params(command)}
    assert taking == {"rollout", "score", "features", "select", "train", "evaluate", "export"} | {
        f"diagnose {name}" for name in ("staleness", "step", "fidelity")
    }
    for name in taking:
        assert option(name, "model").opts == ["--model", "--policy"]


def test_a_validation_set_is_the_option_target_in_every_command() -> None:
    taking = {name for name, command in COMMANDS.items() if "target" in params(command)}
    assert taking == {"score", "diagnose step", "diagnose fidelity"}
    for name in taking:
        assert option(name, "target").opts == ["--target", "--validation"]


def params(command: Any) -> set[str]:
    return {p.name for p in command.params}


@pytest.mark.parametrize(("command", "name", "config", "key"), SAME_AS_SETTING)
def test_an_option_of_a_setting_has_no_default_but_shows_the_settings_one(
    command: str, name: str, config: type[Section], key: str
) -> None:
    assert option(command, name).default is None
    assert option(command, name).help.endswith(f"default: {default_of(config, key)}")


def test_an_option_that_is_not_given_leaves_the_setting_alone() -> None:
    assert section(RolloutsConfig, responses=None) == RolloutsConfig()
    assert section(RolloutsConfig, responses=4).responses == 4
    assert section(SelectionConfig, ["strategy.scoring=stage"], ratio=0.2).ratio == 0.2


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="max_new_tokens=4 and --max-new-tokens set the same"):
        section(RolloutsConfig, ["max_new_tokens=4"], max_new_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("rollout", "--model", "m", "--prompts", "p", "--out", "o"), "validation_responses"),
        (("evaluate", "--model", "m", "--set", "s=p"), "every"),
        (("evaluate", "--model", "m", "--set", "s=p"), "targeted"),
    ],
)
def test_a_setting_that_only_a_run_reads_is_refused(arguments: tuple[str, ...], key: str) -> None:
    outcome = invoke(*arguments, f"{key}=3")
    assert isinstance(outcome.exception, InputError)
    assert f"{key} has no effect outside" in str(outcome.exception)


def test_the_batch_size_is_the_engines() -> None:
    config = section(RolloutsConfig, engine_settings(["top_p=0.9"], 32))
    assert (config.top_p, config.engine.settings.batch_size) == (0.9, 32)
    assert engine_settings(["top_p=0.9"], None) == ["top_p=0.9"]


def test_the_help_of_an_option_is_the_description_of_its_setting() -> None:
    assert setting(RolloutsConfig, "responses").help == "Responses per prompt; default: 8"
    assert setting(InfluenceConfig, "sketch").help.endswith("; default: exact")
    assert "; default" not in setting(InfluenceConfig, "parameters", text="patterns").help


def test_windows_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "argv", ["cropi", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: cropi runs on Linux and macOS; on Windows, use it inside WSL 2\n"
    )


def test_a_run_in_python_refuses_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="WSL 2"):
        cropi.run(None)  # type: ignore[arg-type]
