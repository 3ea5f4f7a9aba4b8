"""Plug-ins: sketches, strategies, engines, trainers, verifiers and built-in models, by name.

A built-in plug-in is one file in the folder of its kind, registered by `@plugin` where it is
defined. Looking for a name imports the files of that folder that contain `@plugin("KIND"`, so
nothing else has to list it. A user's own is given as `package.module:object` or `file.py:object`.

What is registered is called with its settings, an instance of its `Settings` (a `Section`), and
then with whatever its kind hands over, such as the policy to an engine. One without a `Settings`
attribute has no settings and is called without them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar, Self, TypeVar

from pydantic import (
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from cropi.errors import InputError
from cropi.plugin_calls import calling, reason_of
from cropi.settings import NoSettings, Section
from cropi.settings_messages import message_of
from cropi.text import require_path, shown
from cropi.users_code import code_at

Target = TypeVar("Target")


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: how messages call it, and the package whose modules define it."""

    title: str
    package: str
    has: tuple[str, ...] = ()
    """Methods that tell an object of this kind from any other; none: it is called."""


KINDS = {
    "sketch": Kind("sketch", "cropi.sketches", ("project",)),
    "strategy": Kind("strategy", "cropi.selection", ("select",)),
    "engine": Kind("rollout engine", "cropi.rollouts.engines", ("generate",)),
    "trainer": Kind("training engine", "cropi.training.engines", ("train",)),
    "verifier": Kind("verifier", "cropi.verifiers"),
    "model": Kind("model", "cropi.policy.models"),
    "rollout_format": Kind("rollout format", "cropi.exchange.imports", ("recognises", "responses")),
    "export": Kind("trainer to export to", "cropi.exchange.exports", ("row", "command")),
}
RENAMED_PLUGINS = {"influence": "one_shot"}
"""Earlier names of plug-ins."""
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_files: dict[Path, ModuleType] = {}


def plugin(
    kind: str, name: str, settings: type[Section] | None = None
) -> Callable[[Target], Target]:
    """Register what is decorated as the built-in plug-in `name` of a kind.

    `settings` becomes its `Settings`; a class may also define them itself.
    """

    def register(target: Target) -> Target:
        if settings is not None:
            target.Settings = settings  # type: ignore[attr-defined]
        _registered[kind][name] = target
        return target

    return register


def plugin_names(kind: str) -> list[str]:
    """The names of all built-in plug-ins of a kind, sorted; imports the files that define them."""
    for name in _defining_modules(kind):
        importlib.import_module(name)
    return sorted(_registered[kind])


def _defining_modules(kind: str) -> list[str]:
    """The modules of a kind's folder that register a plug-in.

    The others there may need what is not installed, so none is imported to find out.
    """
    package = importlib.import_module(KINDS[kind].package)
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if f'@plugin("{kind}"' in _source(name)]


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    read = getattr(spec.loader if spec else None, "get_source", None)
    return (read(module) or "") if read else ""


def is_built_in(kind: str, name: str) -> bool:
    """Whether a built-in plug-in of this kind has that name."""
    return name in _registered[kind] or (":" not in name and name in plugin_names(kind))


def resolve_name(kind: str, name: str, folders: Iterable[Path] = ()) -> str:
    """Return the name under which any process finds the plug-in: a file's path is made absolute.

    A file is looked for in the current directory, then in `folders`. Raises InputError if it is
    not there, or if the name is neither a built-in plug-in's nor of the form of a user's own.
    """
    if is_built_in(kind, name):
        return name
    require_path(name, KINDS[kind].title)
    place, _, attribute = name.rpartition(":")
    if not attribute or not (place.endswith(".py") or place.replace(".", "_").isidentifier()):
        raise InputError(unknown_name(KINDS[kind].title, name, plugin_names(kind)))
    if not place.endswith(".py"):
        return name
    tried = [Path(place).expanduser().absolute(), *(f.absolute() / place for f in folders)]
    path = next((p for p in tried if p.is_file()), None)
    if path is None:
        looked = " or ".join(dict.fromkeys(str(p) for p in tried))
        raise InputError(
            f"{KINDS[kind].title} {name!r}: {looked} is not a file; give the path of a Python file"
        )
    return f"{path}:{attribute}"


def code_of(kind: str, name: str) -> str:
    """The hash of the files that a user's plug-in of that resolved name is made of; else ""."""
    return "" if is_built_in(kind, name) else code_at(name.rpartition(":")[0])


def unknown_name(title: str, name: str, names: Iterable[str], more: str = "") -> str:
    """The message about a name that nothing has; `more` says what else would be allowed."""
    if name in RENAMED_PLUGINS:
        return f"unknown {title} {name!r}; it is called {RENAMED_PLUGINS[name]!r} here"
    allowed = sorted(names)
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"unknown {title} {shown(name)}; allowed: {', '.join(allowed)}{more}, or your own "
        f"package.module:object or file.py:object{hint}"
    )


def find_plugin(kind: str, name: str) -> Any:
    """Return the object that a resolved name refers to.

    Raises InputError if there is none, or if a user's module cannot be imported.
    """
    if is_built_in(kind, name):
        return _registered[kind][name]
    place, _, attribute = resolve_name(kind, name).rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(kind, name, place)
    target: Any = module
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if target is None:
        public = [n for n, v in vars(module).items() if n[0] != "_" and _defined_in(module, v)]
        raise InputError(
            f"{KINDS[kind].title} {name!r}: {place} has no {attribute!r}; it has "
            f"{', '.join(public) or 'nothing of its own'}"
        )
    _require_kind(kind, name, target)
    return target


def _require_kind(kind: str, name: str, target: Any) -> None:
    """Raise InputError for a user's object that cannot be a plug-in of this kind."""
    title, methods = KINDS[kind].title, KINDS[kind].has
    if not methods and kind != "verifier" and not callable(target):
        raise InputError(f"{title} {name!r} is a {type(target).__name__}; name a function or class")
    # A function may build the object.
    missing = [each for each in methods if not hasattr(target, each)]
    if missing and not isinstance(target, FunctionType):
        raise InputError(
            f"{title} {name!r} is not a {title}: it has no method {', '.join(missing)}; name a "
            "class that has"
        )


def _load_module(kind: str, name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{KINDS[kind].title} {name!r}: no module named {error.name!r}; install it or put its "
            "folder on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise _not_importable(place, error) from error


def _load_file(path: Path) -> ModuleType:
    """Import a file once, under a module name of its own; its folder is searched last."""
    if path not in _files:
        name = f"cropi_user_{path.stem}"
        if name in sys.modules:  # another folder's file of the same name
            name = f"{name}_{len(_files)}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.path.append(str(path.parent))
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and pickles look their module up by name.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception | SystemExit):
                raise _not_importable(str(path), error) from error
            raise
        _files[path] = module
    return _files[path]


def _not_importable(place: str, error: BaseException) -> InputError:
    """The error for a user's module that fails while it is imported."""
    return InputError(f"{place} cannot be imported: {reason_of(error)}; fix it, then try again")


def _defined_in(module: ModuleType, value: Any) -> bool:
    defines = inspect.isfunction(value) or inspect.isclass(value)
    return defines and value.__module__ == module.__name__


def _require_signature(
    kind: str, name: str, target: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Raise InputError unless a plug-in takes these arguments."""
    try:
        inspect.signature(target).bind(*arguments, **named)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{KINDS[kind].title} {name!r} cannot be made: {error}; see CONTRIBUTING.md for what "
            "it is called with"
        ) from None


def settings_of(target: Any) -> type[Section]:
    """The settings class of a plug-in. Raises InputError if its `Settings` is not a Section."""
    settings = getattr(target, "Settings", NoSettings)
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        raise InputError(
            f"{target!r}: its Settings {settings!r} is not a subclass of cropi.settings.Section"
        )
    return settings


def _validated(kind: type[Choice], values: dict[str, Any]) -> Choice:
    return kind.model_validate(values)


class Choice(Section):
    """A plug-in of one kind by name, with its settings.

    Written as the name alone, or as a mapping of `name` and the plug-in's settings; without a name
    the default of its kind is meant. Names of files are resolved from the folders that validation
    is given as context.
    """

    kind: ClassVar[str]
    default: ClassVar[str]

    name: str
    settings: SerializeAsAny[Section]

    @classmethod
    def of(cls, name: str | None = None, **settings: Any) -> Self:
        """The choice of a plug-in by name; settings that are not given have their defaults.

        Raises InputError for a name or a setting that there is not.
        """
        try:
            return cls.model_validate({"name": name or cls.default, **settings})
        except ValidationError as error:
            raise InputError(_summary(name or cls.default, error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: another process has not loaded the file of a user's settings."""
        return _validated, (type(self), {"name": self.name, **self.settings.model_dump()})

    @property
    def slug(self) -> str:
        """The name as that of a folder: a user's own loses what file systems dislike."""
        return slug(self.name)

    def build(self, *arguments: Any, **named: Any) -> Any:
        """Call the plug-in with its settings, if it has any, and then with these arguments."""
        target = find_plugin(self.kind, self.name)
        if settings_of(target) is not NoSettings:
            arguments = (self.settings, *arguments)
        _require_signature(self.kind, self.name, target, arguments, named)
        with calling(KINDS[self.kind].title, self.name, "making it"):
            return target(*arguments, **named)

    @model_validator(mode="before")
    @classmethod
    def _find(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Choice):
            return value
        if not isinstance(value, str | Mapping):
            raise ValueError(f"{shown(value)} is neither a name nor a mapping of name and settings")
        given = {"name": value} if isinstance(value, str) else dict(value)
        name = given.pop("name", cls.default)
        if not isinstance(name, str):
            raise ValueError(f"name {shown(name)} is not text; give the name of one")
        resolved = resolve_name(cls.kind, name, (info.context or {}).get("folders", ()))
        kind = settings_of(find_plugin(cls.kind, resolved))
        try:
            return {"name": resolved, "settings": kind.model_validate(given)}
        except ValidationError as error:
            context = {"errors": error.errors(), "section": kind, "plugin": name}
            raise PydanticCustomError("plugin_settings", "wrong settings", context) from None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A name, or a mapping of a name and the settings of the plug-in that has it."""
        names = plugin_names(cls.kind)
        users_own = {"type": "string", "pattern": ":"}
        mappings = [cls._mapping_schema(name) for name in names]
        mappings.append({"properties": {"name": users_own}, "required": ["name"]})
        forms = [{"enum": names}, users_own, *({"type": "object", **m} for m in mappings)]
        return {"anyOf": forms, "description": cls.__doc__}

    @classmethod
    def _mapping_schema(cls, name: str) -> JsonSchemaValue:
        settings = _inlined(settings_of(find_plugin(cls.kind, name)).model_json_schema())
        properties = {"name": {"const": name}, **settings.get("properties", {})}
        required = [] if name == cls.default else ["name"]
        return {"properties": properties, "required": required, "additionalProperties": False}

    @model_serializer(mode="plain")
    def _shorthand(self, info: SerializationInfo) -> Any:
        """The name alone where the plug-in has no settings."""
        settings = self.settings.model_dump(mode=info.mode, exclude_none=info.exclude_none)
        return {"name": self.name, **settings} if type(self.settings).model_fields else self.name


def _inlined(schema: Any, definitions: Mapping[str, Any] | None = None) -> Any:
    """A JSON schema with its sections in place of references, which would be lost."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = definitions or schema.get("$defs", {})
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {k: _inlined(each, definitions) for k, each in schema.items() if k != "$defs"}


def _summary(name: str, error: ValidationError) -> str:
    """What is wrong with a choice, in one line; a config's messages say more."""
    (first,) = error.errors()[:1]
    nested = first.get("ctx", {}).get("errors")
    if nested is None:
        return message_of(first)
    problems = [
        f"{'.'.join(map(str, e['loc']))} = {shown(e['input'])}: {message_of(e)}" for e in nested
    ]
    return f"settings of {name}: {'; '.join(problems)}"


def name_in(value: Any) -> str | None:
    """The name of a choice in plain values, as a file holds them; None where there is none."""
    return value.get("name") if isinstance(value, Mapping) else value


def slug(name: str) -> str:
    """The name of a plug-in as that of a folder; of a file only its own name counts."""
    place, colon, attribute = name.rpartition(":")
    if place.endswith(".py"):
        name = f"{Path(place).stem}{colon}{attribute}"
    return re.sub(r"[^\w-]+", "-", name)
