"""All settings for editors, as a JSON schema, and for readers, as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from cropi.config.run_config import RunConfig
from cropi.plugins import Choice, find_plugin, plugin_names, settings_of
from cropi.settings import Section, default_of
from cropi.settings_messages import section_in

HEAD = """# Settings

Every setting of a config, with its default. This page is written by `cropi config schema
--markdown`; `cropi config schema` prints the same as a JSON schema, with which an editor completes
and checks a file that begins with

    # yaml-language-server: $schema=cropi.schema.json

A plug-in (sketch, strategy, rollout engine, training engine) is written as its name, or as a
mapping of `name` and its settings: `strategy: random`, or `strategy: {name: ranking, memory: 0}`. A
user's own is `package.module:object` or `file.py:object`.
"""
PLURAL = {
    "a plug-in": "plug-ins",
    "section": "sections",
    "text": "texts",
    "value": "values",
    "text or a plug-in": "names or plug-ins",
}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file; what `extends` may supply is not required."""
    schema = RunConfig.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "a preset or a file"}
    for inherited in (
        schema,
        *(schema["$defs"][name] for name in ("ModelConfig", "PromptsConfig")),
    ):
        inherited.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def markdown() -> str:
    """The page of all settings, section by section, each plug-in under its setting."""
    return "\n".join([HEAD, *_tables("", RunConfig, set())])


def _tables(prefix: str, section: type[Section], written: set[type[Section]]) -> Iterator[str]:
    """A section's table, then those of the sections and plug-ins in it, each once."""
    written.add(section)
    yield f"## {prefix.rstrip('.') or 'The run'}\n\n{_summary(section)}\n"
    yield _table(prefix, section)
    yield from _inner_tables(prefix, section, written)


def _inner_tables(
    prefix: str, section: type[Section], written: set[type[Section]]
) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        alone = inner is field.annotation
        if inner is None or inner in written:
            continue
        if issubclass(inner, Choice):
            if alone:
                yield from _plugins(f"{prefix}{name}", inner, written)
        elif alone or type(None) in get_args(field.annotation):
            yield from _tables(f"{prefix}{name}.", inner, written)
        else:
            written.add(inner)
            yield f"### An entry of {prefix}{name}\n\n{_summary(inner)}\n"
            yield _table("", inner)


def _plugins(key: str, choice: type[Choice], written: set[type[Section]]) -> Iterator[str]:
    for name in plugin_names(choice.kind):
        plugin = find_plugin(choice.kind, name)
        settings = settings_of(plugin)
        yield f"### {key}: {name}\n\n{_summary(plugin)}\n"
        if settings.model_fields:
            yield _table(f"{key}.", settings)
            yield from _inner_tables(f"{key}.", settings, written)


def _table(prefix: str, section: type[Section]) -> str:
    """The settings of one section; sections in it have tables of their own."""
    schema = section.model_json_schema()
    rows = ["| setting | default | values | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if field.description is None:
            continue
        values = _values(schema["properties"][name], schema.get("$defs", {}))
        row = (f"`{prefix}{name}`", _default(section, name), values, field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return "\n".join(rows) + "\n"


def _default(section: type[Section], name: str) -> str:
    if section.model_fields[name].is_required():
        return "required"
    default = default_of(section, name)
    if isinstance(default, Choice):
        return f"`{default.name}`"
    if default is None or isinstance(default, Section) or default in ([], {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _values(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "$ref" in schema:
        return _named(schema["$ref"].rpartition("/")[2], definitions)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        if any("const" in form.get("properties", {}).get("name", {}) for form in schema["anyOf"]):
            return "a plug-in"
        forms = [_values(form, definitions) for form in schema["anyOf"]]
        return " or ".join(dict.fromkeys(form for form in forms if form))
    if schema.get("type") == "array":
        entry = _values(schema.get("items", {}), definitions)
        return f"list of {PLURAL.get(entry, entry)}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        entry = _values(inner, definitions) if isinstance(inner, dict) else "value"
        return f"mapping of names to {PLURAL.get(entry, entry)}"
    return _number_or_text(schema)


def _named(name: str, definitions: Mapping[str, Any]) -> str:
    schema = definitions.get(name, {})
    return "a plug-in" if "anyOf" in schema else "section"


def _number_or_text(schema: Mapping[str, Any]) -> str:
    words = {"string": "text", "boolean": "`true`, `false`", "integer": "whole number"}
    kind = schema.get("type", "")
    limits = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    word = "" if kind == "null" else words.get(kind, kind)
    return " ".join([word, ", ".join(limits)]).strip()


def _summary(documented: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((documented.__doc__ or "").strip().split("\n\n")[0].split())
