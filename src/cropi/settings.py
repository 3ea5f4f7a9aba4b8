"""What every group of settings is made of.

Settings live beside the code that they configure: a package's `settings.py`, or the file of the
plug-in that they belong to. `cropi.config` assembles them. Importing this module loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from cropi.errors import InputError
from cropi.schema import TEMPERATURES
from cropi.settings_messages import explain, section_in
from cropi.short_repr import ShortRepr
from cropi.text import require_path, shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

MOST = 10_000_000
"""Largest count: more prompts, steps or tokens than any run will see."""
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Devices = Annotated[int, Field(ge=1, le=1_024)]
"""Cores, threads or GPUs that work together: more than a machine, or a cluster in use, has."""
Temperature = Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]
PathText = Annotated[str, AfterValidator(require_path)]
"""A path, URL or hub id as text."""


class SectionType(ModelMetaclass):
    """Settings that are made in Python are refused as those of a file are: by an InputError.

    Only a call of the class comes here; sections within others are made by pydantic itself, which
    collects what is wrong with all of them.
    """

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Make the settings. Raises InputError naming the key, the value and the fix."""
        try:
            return super().__call__(*args, **settings)
        except ValidationError as error:
            kind: Any = self
            raise InputError(explain(error, self.__name__, kind)) from None


class Section(ShortRepr, BaseModel, metaclass=SectionType):
    """A group of settings: immutable, strict about its keys, and without NaN or infinity.

    True and false are not numbers, nor are numbers true or false, and a count is at most `MOST`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        scalars = _scalars_in(cls.model_fields[name].annotation)
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, bool) and scalars and bool not in scalars and str not in scalars:
                raise PydanticCustomError("int_type" if float not in scalars else "float_type", "")
            if scalars == {bool} and not isinstance(each, bool | None):
                raise PydanticCustomError("bool_type", "")
            is_count = int in scalars and isinstance(each, int) and "seed" not in name
            if is_count and not -MOST <= each <= MOST:
                raise ValueError(f"{shown(each)} is beyond {MOST:,}; give a smaller number")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Raise InputError: settings do not change, as what was checked together would not hold."""
        try:
            super().__setattr__(name, value)
        except ValidationError:
            kind = type(self).__name__
            raise InputError(
                f"{kind}.{name} cannot be changed; give it where the {kind} is made, or take a "
                f"copy: .model_copy(update={{{name!r}: {shown(value, 60)}}})"
            ) from None

    def values_shown(self) -> dict[str, Any]:
        """The settings that are not the defaults; `model_dump()` has all of them."""
        keys = [key for key in type(self).model_fields if hasattr(self, key)]
        return {key: getattr(self, key) for key in keys if not is_default(self, key)}


S = TypeVar("S")


class NoSettings(Section):
    """The settings of a plug-in that has none."""


def given_or_default(value: S | None, kind: type[S], argument: str) -> S:
    """The settings that a caller gave, or the defaults of their class.

    Raises InputError, naming the argument, for anything else, such as the name of a plug-in.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    raise InputError(
        f"{argument}={shown(value, 60)} is not a {kind.__name__}; give {kind.__name__}"
        f"({_example(value, kind)})"
    )


def _example(value: Any, kind: type) -> str:
    """How a value that was given for settings may have been meant: as the name of a plug-in."""
    fields = kind.model_fields if issubclass(kind, Section) and isinstance(value, str) else {}
    choices = [key for key, f in fields.items() if hasattr(section_in(f.annotation), "kind")]
    return f"{choices[0]}={shown(value, 60)}" if choices else "..."


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


def _scalars_in(annotation: Any) -> set[type]:
    """Which of bool, int, float and str are in an annotation such as `list[int] | None`."""
    if isinstance(annotation, type) and annotation in (bool, int, float, str):
        return {annotation}
    inner = [_scalars_in(each) for each in getattr(annotation, "__args__", ())]
    return set().union(*inner)
