"""The JSON schema allows what a config allows, and the committed page names every setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cropi.config import RunConfig
from cropi.config.settings_page import json_schema, markdown
from cropi.plugins import Choice, find_plugin, plugin_names, settings_of
from cropi.settings import Section
from cropi.settings_messages import section_in

ROOT = Path(__file__).parents[2]
CONFIGS = [
    *sorted((ROOT / "src/cropi/presets").glob("*.yaml")),
    *sorted((ROOT / "examples").glob("*.yaml")),
    *sorted((ROOT / "benchmarks/study").glob("*.yaml")),
]


def sections(section: type[Section] = RunConfig) -> Iterator[type[Section]]:
    """Every section below one, the settings of plug-ins included."""
    yield section
    for field in section.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None and issubclass(inner, Choice):
            for name in plugin_names(inner.kind):
                yield settings_of(find_plugin(inner.kind, name))
        elif inner is not None:
            yield from sections(inner)


def allows(schema: dict[str, Any], value: Any, definitions: dict[str, Any]) -> bool:
    """Whether a schema of the kinds that pydantic writes here allows a value."""
    if "$ref" in schema:
        return allows(definitions[schema["$ref"].rpartition("/")[2]], value, definitions)
    if "anyOf" in schema:
        return any(allows(form, value, definitions) for form in schema["anyOf"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    types = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    types |= {"integer": int, "number": (int, float)}
    kind = schema.get("type")
    if kind and not isinstance(value, types[kind]):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if kind == "array":
        return all(allows(schema.get("items", {}), entry, definitions) for entry in value)
    if kind == "object":
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = set(schema.get("required", ())) <= value.keys()
        return required and all(
            allows(properties[k], v, definitions)
            if k in properties
            else more is not False and (more is True or allows(more, v, definitions))
            for k, v in value.items()
        )
    return True


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_schema_allows_every_config_that_ships(path: Path) -> None:
    schema = json_schema()
    assert allows(schema, yaml.safe_load(path.read_text(encoding="utf-8")), schema["$defs"])


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"generations": 8}},
        {"selection": {"strategy": {"name": "random", "memory": 0}}},
        {"influence": {"sketch": {"dim": 8}}},
        {"rollouts": {"engine": "vlm"}},
        {"curriculum": {"refresh": "sometimes"}},
    ],
)
def test_the_schema_refuses_what_the_config_refuses(values: dict[str, Any]) -> None:
    schema = json_schema()
    assert not allows(schema, values, schema["$defs"])


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(json_schema())) == json_schema()


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page.rstrip() == markdown().rstrip(), (
        "run `cropi config schema --markdown > docs/settings.md`"
    )


def test_the_page_names_every_setting() -> None:
    page = markdown()
    assert len(set(sections())) > 20
    for section in set(sections()):
        for name, field in section.model_fields.items():
            assert field.description or section_in(field.annotation), f"{section.__name__}.{name}"
            if field.description:
                assert f"{name}`" in page
