"""Reading a config: a preset or a YAML file, dotted overrides over it, then validation.

A file may build on another: `extends: NAME` takes a preset, or a file relative to this one, and
what the file says itself goes over it, sections key by key, lists and values as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cropi.arguments import require_kind, require_list_of
from cropi.config import yaml_text
from cropi.config.run_config import RunConfig
from cropi.errors import InputError
from cropi.plugins import Choice, is_built_in
from cropi.prompts.shards import find_shards
from cropi.settings import Section
from cropi.settings_messages import explain
from cropi.text import remote_url, require_path, require_plain, shortened, shown

SectionType = TypeVar("SectionType", bound=Section)


def presets() -> list[str]:
    """Return the names of the configs that ship with cropi."""
    folder = resources.files("cropi") / "presets"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a preset by name or a YAML file by path, apply `a.b=c` overrides, and validate.

    Relative prompt files are looked for from the folder of `source`, also those that it inherits.

    Raises InputError naming the key, the value and the fix.
    """
    require_kind(source, (str, Path), "source", "give a preset's name, or the path of a YAML file")
    require_list_of(overrides, str, "overrides", 'give a list such as ["seed=1", "name=mine"]')
    return validate(config_values(str(source), overrides), str(source), Path(source).parent)


def config_values(source: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config as plain values, its overrides applied. Raises InputError unless it can be read."""
    values = _with_bases(source, Path())
    for override in overrides:
        _apply(values, override, choices_in(RunConfig))
    require_plain(values, f"config {shortened(source, 200)}")
    return values


def validate(values: dict[str, Any], origin: str, base: Path | None = None) -> RunConfig:
    """Validate a config given as plain values; `origin` is named in errors.

    A user's plug-ins, where they are files, are looked for in the current directory and in `base`.
    """
    require_plain(values, f"config {shortened(origin, 200)}")
    try:
        return RunConfig.model_validate(values, context={"folders": (base,) if base else ()})
    except ValidationError as error:
        raise InputError(explain(error, f"config {origin}", RunConfig)) from None


def resolve_model_path(config: RunConfig, base: Path | None) -> RunConfig:
    """The config with an absolute path to a model folder that is found only relative to `base`.

    Prompts and verifiers are looked for from `base` too, beside the current directory.
    """
    path = resolved_from(config.model.path, base)
    if path == config.model.path:
        return config
    model = config.model.model_copy(update={"path": path})
    return config.model_copy(update={"model": model})


def resolved_from(model: str, base: Path | None) -> str:
    """The path of a model, absolute if its folder is found only relative to `base`."""
    if base is None or is_built_in("model", model) or Path(model).exists():
        return model
    return str((base / model).resolve()) if (base / model).is_dir() else model


def with_settings(config: RunConfig, settings: Mapping[str, Any], origin: str) -> RunConfig:
    """The config with dotted settings over it; `origin` is named in errors.

    Raises InputError naming the key, the value and the fix.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    for key, value in settings.items():
        _set(values, key, value, f"{key}={value}", choices_in(RunConfig))
    return validate(values, origin)


def build_section(
    kind: type[SectionType], values: dict[str, Any], overrides: Sequence[str] = ()
) -> SectionType:
    """Validate one section given as plain values and `a.b=c` overrides.

    Raises InputError naming the key, the value and the fix.
    """
    given = dict(values)
    for override in overrides:
        _apply(given, override, choices_in(kind))
    require_plain(given, "settings")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InputError(explain(error, "settings", kind)) from None


def check_files(config: RunConfig, base: Path | None = None) -> None:
    """Raise InputError for prompt files that are not there, relative to here or to `base`."""
    sets = config.prompts
    sources = [*sets.pool, *config.warmup.prompts]
    sources += [
        s for named in (sets.validation, sets.test) for part in named.values() for s in part
    ]
    for source in sources:
        if source.path is not None and not remote_url(source.path):
            find_shards(source.path, base, source.split)


def to_yaml(config: RunConfig) -> str:
    """Render a resolved config; loading the text gives the same config."""
    return yaml_text.dump(config.model_dump(mode="json", exclude_none=True))


def _with_bases(source: str, folder: Path, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a config and what it extends; paths start at `folder`, `extending` led here."""
    values = _read_yaml(source, folder)
    base = values.pop("extends", None)
    if base is None:
        return values
    path = folder / source
    if not isinstance(base, str):
        raise InputError(
            f"config {path}: extends = {shown(base)}: give one preset ({', '.join(presets())}) or "
            "the path of one YAML file"
        )
    chain = (*extending, str(path.resolve()))
    if str((path.parent / base).resolve()) in chain:
        raise InputError(f"config {path}: extends = {shown(base)} leads back to itself; remove it")
    try:
        inherited = _with_bases(base, path.parent, chain)
    except InputError as error:
        raise InputError(f"config {path}: extends = {shown(base)}: {error}") from None
    return _merged(inherited, values)


def _merged(base: dict[str, Any], over: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay `over` on `base`: sections merge, everything else replaces.

    So does the choice of another plug-in: its settings are not those of the first.
    """
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if f"{prefix}{key}" in choices_in(RunConfig) and isinstance(value, dict):
            before = {"name": before} if isinstance(before, str) else before
            if before and value.get("name", before.get("name")) != before.get("name"):
                before = None
        if isinstance(before, dict) and isinstance(value, dict):
            value = _merged(before, value, f"{prefix}{key}.")
        merged[key] = value
    return merged


def _read_yaml(source: str, folder: Path) -> dict[str, Any]:
    require_path(source, "config")
    path = folder / source
    if source in presets() and not path.is_file():
        text = (resources.files("cropi") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"config {source} cannot be read as text: {error}") from None
    else:
        raise InputError(
            f"config {source} is neither a file nor a preset; give the path of a YAML file or "
            f"one of: {', '.join(presets())}"
        )
    values = yaml_text.parse(text, f"config {shortened(source, 200)}")
    if not isinstance(values, dict):
        raise InputError(f"config {source} holds no settings; it needs at least model and prompts")
    return values


def _apply(values: dict[str, Any], override: str, choices: frozenset[str]) -> None:
    """Set one `key.path=value` override in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {shown(override)} is not of the form key.path=value")
    value = yaml_text.parse(text, f"override {shown(override)}: {shown(text)}")
    _set(values, key, value, override, choices)


def _set(
    values: dict[str, Any], key: str, value: Any, override: str, choices: frozenset[str]
) -> None:
    """Set the value at a dotted key in place; the name of a plug-in becomes a mapping with it."""
    *parents, leaf = key.split(".")
    node = values
    for depth, name in enumerate(parents):
        path = ".".join(parents[: depth + 1])
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if path in choices and isinstance(child, str):
            child = node[name] = {"name": child}
        if not isinstance(child, dict):
            raise InputError(f"override {shown(override)}: {path} is a value, not a section")
        node = child
    node[leaf] = value
    if leaf == "name" and ".".join(parents) in choices:  # settings are those of one plug-in
        for other in set(node) - {"name"}:
            del node[other]


def choices_in(section: type[Section], prefix: str = "") -> frozenset[str]:
    """The dotted keys below a section whose value is a plug-in."""
    keys: set[str] = set()
    for name, field in section.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        key = f"{prefix}{name}"
        keys |= {key} if issubclass(kind, Choice) else choices_in(kind, f"{key}.")
    return frozenset(keys)
