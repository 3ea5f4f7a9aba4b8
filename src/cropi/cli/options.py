"""Options that commands share, and how their texts become settings.

An option that stands for a setting has no default of its own: `setting` takes its description and
the default that the help shows from the settings class, and an option that is not given leaves the
setting to its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from cropi.cli.flag_names import given_in_flags
from cropi.errors import InputError
from cropi.execution.settings import ScaleConfig
from cropi.influence.settings import InfluenceConfig
from cropi.plugins import Choice
from cropi.policy.settings import ModelConfig, SplitKind
from cropi.settings import Section, default_of
from cropi.text import require_names
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.policy.reference import PolicyRef
    from cropi.schema import RolloutGroup


def setting(section: type[Section], key: str, *names: str, text: str = "") -> Any:
    """The option for a setting; `text` is its help where the setting's description does not fit."""
    text = text or str(section.model_fields[key].description)
    default = default_of(section, key)
    default = default.name if isinstance(default, Choice) else default
    if default is not None:
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        text = f"{text}; default: {shown}"
    return typer.Option(*names, help=text[0].upper() + text[1:])


Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, e.g. selection.ratio=0.2"),
]
SectionSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings of the section named above"),
]
Config = Annotated[
    str,
    typer.Argument(
        help="A YAML file, or a preset such as pocket", autocompletion=lambda: _preset_names()
    ),
]
PLUGIN_HELP = "A name, package.module:object or file.py:object"
MODEL_HELP = "A model directory, a hub id, or a built-in model such as pocket"
Model = Annotated[str, typer.Option("--model", "--policy", help=MODEL_HELP)]
PromptsFile = Annotated[Path, typer.Option(help="Prompts: a file, a folder or a pattern")]
RolloutsFile = Annotated[Path, typer.Argument(help="Rollouts (Parquet)")]
Targets = Annotated[
    list[str],
    typer.Option(
        "--target", "--validation", help="NAME=FILE: rollouts of a validation set; repeatable"
    ),
]
Verifier = Annotated[
    str | None,
    setting(
        VerifiersConfig,
        "default",
        "--verifier",
        text="a built-in verifier such as exact, file.py:function or package.module:function",
    ),
]
BatchTokens = Annotated[int | None, setting(InfluenceConfig, "batch_tokens")]
Dtype = Annotated[
    str | None,
    setting(
        ModelConfig,
        "dtype",
        text="data type: auto (the checkpoint's), float32, bfloat16 or float16",
    ),
]
Device = Annotated[str | None, setting(ModelConfig, "device", text="auto, cpu, cuda or cuda:N")]
Seed = Annotated[int, typer.Option(min=0, help="The seed of everything random")]
OutFile = Annotated[Path, typer.Option(help="The Parquet file to write")]


def load(config: str, settings: list[str] | None) -> tuple[Any, Path | None]:
    """The validated config and its folder, where relative paths in it start.

    Where settings are wrong, the error says what is wrong with the files too.
    """
    from cropi.config.check import load_checked

    loaded = load_checked(config, settings or [])
    path = Path(config)
    return loaded, path.resolve().parent if path.is_file() else None


def section(
    kind: Any, settings: Sequence[str] | None = None, *, inert: Iterable[str] = (), **options: Any
) -> Any:
    """Validate one section of the config from dotted settings and the options that were given.

    `inert` are keys that have no effect outside a run. Raises InputError for one of them, and for
    a setting that is also given as an option.
    """
    from cropi.config import build_section

    given = {key: value for key, value in options.items() if value is not None}
    for text in settings or []:
        key = text.partition("=")[0]
        if key in inert:
            raise InputError(f"{text}: {key} has no effect outside `cropi run`; remove it")
        if key in given:
            option = key.replace("_", "-")
            raise InputError(f"{text} and --{option} set the same; remove one of them")
    try:
        return build_section(kind, given, settings or [])
    except InputError as error:
        raise InputError(given_in_flags(str(error), given)) from None


class _Scaled(Section):
    """What a command beside `cropi run` takes of a config's top level."""

    scale: ScaleConfig = Field(default_factory=ScaleConfig)


def scale_and_rest(settings: Sequence[str] | None) -> tuple[ScaleConfig, list[str]]:
    """The settings `scale...` among dotted settings, validated, and the other ones."""
    from cropi.config import build_section

    of_scale, rest = split_settings("scale", settings)
    return build_section(_Scaled, {}, of_scale).scale, rest


def split_settings(key: str, settings: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The dotted settings that start with `key`, and all others."""
    texts = list(settings or [])
    inside = [text for text in texts if text.partition("=")[0].split(".")[0] == key]
    return inside, [text for text in texts if text not in inside]


def engine_settings(settings: Sequence[str], batch_size: int | None) -> list[str]:
    """Dotted settings, with the option --batch-size as the one of the engine that it is."""
    return [*settings, *([] if batch_size is None else [f"engine.batch_size={batch_size}"])]


def model_config(model: str, **options: Any) -> ModelConfig:
    """The settings of the policy at `model`."""
    try:
        config: ModelConfig = section(ModelConfig, path=model, **options)
    except InputError as error:
        raise InputError(str(error).replace("--path", "--model", 1)) from None
    return config


def policy_at(model: str, dtype: str | None, device: str | None) -> PolicyRef:
    """A reference to a policy; its weights are loaded by what needs them."""
    from cropi.policy.reference import PolicyRef

    config = model_config(model, dtype=dtype, device=device)
    return PolicyRef(model, dtype=config.dtype, device=config.device)


def load_model(
    model: str,
    dtype: str | None,
    device: str | None,
    shards: int = 1,
    split: SplitKind = "fsdp",
) -> Any:
    """The model at a path, or one of its shards, for commands that need gradients."""
    import cropi

    config = model_config(model, dtype=dtype, device=device)
    return cropi.load_model(
        model, dtype=config.dtype, device=config.device, shards=shards, split=split
    )


def named_files(values: list[str], option: str) -> dict[str, Path]:
    """Parse the values NAME=FILE of an option."""
    files: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise InputError(
                f"--{option} {value!r} is not NAME=FILE; e.g. --{option} gsm8k=val.parquet"
            )
        if name in files or name in ("prompt_id", "norm"):
            raise InputError(
                f"--{option} name {name!r} is taken; give each --{option} a name of its own"
            )
        files[name] = Path(path)
    require_names(files, f"--{option}")
    return files


def read_sets(
    pool: Path, sets: Mapping[str, Path]
) -> tuple[list[RolloutGroup], dict[str, list[RolloutGroup]]]:
    """The rollouts of the pool and of each validation set."""
    import cropi

    return cropi.read_rollouts(pool), {
        name: cropi.read_rollouts(path) for name, path in sets.items()
    }


def _preset_names() -> list[str]:
    from cropi.config import presets

    return presets()
