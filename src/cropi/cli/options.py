"""Options that commands share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cropi.errors import InputError
from cropi.policy.settings import ModelConfig
from cropi.settings import default_of
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.schema import Prompt, Selection

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, e.g. selection.ratio=0.2"),
]
Config = Annotated[str, typer.Argument(help="A YAML file, or a preset such as pocket")]
POLICY_HELP = "A checkpoint directory, a hub id, or a built-in model such as pocket"
PolicyOption = Annotated[str, typer.Option(help=POLICY_HELP)]
PromptsOption = Annotated[Path, typer.Option(help="Prompts: .jsonl, .json or .parquet")]
VerifierOption = Annotated[
    str,
    typer.Option(
        help="A built-in verifier such as math, file.py:function or package.module:function"
    ),
]
VERIFIER = default_of(VerifiersConfig, "default")
DTYPE = default_of(ModelConfig, "dtype")
DEVICE = default_of(ModelConfig, "device")
"""Defaults of commands are those of a config."""
Seed = Annotated[int, typer.Option(min=0, help="Everything random derives from it")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16")]


def load(config: str, settings: list[str] | None) -> tuple[Any, Path | None]:
    """The validated config and its folder, where relative paths in it start."""
    from cropi.config import load_config

    loaded = load_config(config, settings or [])
    path = Path(config)
    return loaded, path.resolve().parent if path.is_file() else None


def section(kind: Any, overrides: list[str] | None = None, **values: Any) -> Any:
    """Validate one section of the config from options and dotted settings."""
    from cropi.config import build_section

    return build_section(kind, values, overrides or [])


def prompts_in(path: Path, seed: int) -> list[Prompt]:
    """Read a prompts file."""
    import cropi

    return cropi.load_prompts(path, seed)


def selection_in(path: Path) -> Selection:
    """Read a selection file."""
    from cropi.store.tables import read_selection

    return read_selection(path)


def named_files(values: list[str], what: str) -> dict[str, Path]:
    """Parse NAME=FILE options."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise InputError(
                f"--{what} {value!r} is not NAME=FILE; e.g. --{what} gsm8k=val.parquet"
            )
        if name in found or name in ("prompt_id", "norm"):
            raise InputError(f"--{what} name {name!r} is taken; give every {what} its own name")
        found[name] = Path(path)
    return found
