"""What every group of settings is made of.

Settings live beside the code that they configure: a package's `settings.py`, or the file of the
plug-in that they belong to. `cropi.config` assembles them. Importing this module loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cropi.schema import TEMPERATURES
from cropi.text import require_path

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]
PathText = Annotated[str, AfterValidator(require_path)]
"""A path, URL or hub id as text."""


class Section(BaseModel):
    """A group of settings: immutable, strict about its keys, and without NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class NoSettings(Section):
    """The settings of a plug-in that has none."""


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        flattened |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flattened


def default_of(section: type[Section], key: str) -> Any:
    """The default of one setting; None where it has to be given."""
    field = section.model_fields[key]
    return None if field.is_required() else field.get_default(call_default_factory=True)


def is_default(section: Section, key: str) -> bool:
    """Whether a setting has the value that it would have if nobody had given one."""
    return bool(getattr(section, key) == default_of(type(section), key))


def section_in(annotation: Any) -> type[Section] | None:
    """The Section class in a field's annotation, such as `list[PromptSource] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (section := section_in(argument)) is not None:
            return section
    return None
