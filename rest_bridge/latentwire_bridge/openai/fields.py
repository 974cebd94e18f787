"""The kinds of fields that a request has: their types, and the spellings that are taken for them.

Each kind says both what it takes and, as JSON Schema, that it takes it: the description of the API
is made of these. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

_STRICT: Final = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)
MAX_INT32: Final = 2**31 - 1

_SIZE: Final = re.compile(r"([1-9][0-9]{0,5})\s*[x*]\s*([1-9][0-9]{0,5})")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Also takes other spellings of a value."""

    read: Callable[[object], object]
    """Returns the value that is meant; what it does not know stays as it is."""
    pattern: str
    """What else may be written, as the text of a regular expression (ECMA-262)."""
    replaces: bool = False
    """Whether only that may be written, since the value itself is no JSON that a caller sends."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Reads the spelling before the value is checked."""
        return BeforeValidator(self.read).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describes the value and its other spellings."""
        text = {"type": "string", "pattern": rf"^\s*({self.pattern})\s*$"}
        return text if self.replaces else {"anyOf": [handler(schema), text]}


def absent_means(value: object) -> Any:  # noqa: ANN401 - as pydantic's Field, which stands for any default
    """Returns the default of a field that may be absent, and what its absence means."""
    return Field(None, json_schema_extra={"default": value})  # type: ignore[dict-item] # JSON


def in_any_case(names: Iterable[str]) -> str:
    """Returns a pattern that takes the names in capitals too."""
    return "|".join(
        "".join(f"[{one}{one.upper()}]" if one.isalpha() else re.escape(one) for one in name)
        for name in names
    )


def _text(value: object) -> object:
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        msg = "Input holds half a surrogate pair, which is no character"
        raise ValueError(msg)
    return value


def lower(value: object) -> object:
    """Returns a name as it is listed."""
    return value.strip().lower() if isinstance(value, str) else value


def _output_format(value: object) -> object:
    name = lower(value)
    return "jpeg" if name == "jpg" else name


def _integer(value: object) -> object:
    """Takes ``"7"`` and ``7.0`` too: forms know text only, JavaScript knows floats only."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _decimal(value: object) -> object:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        return float(value)
    return value


def _size(value: object) -> object:
    text = lower(value)
    if not isinstance(text, str):
        return value
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        msg = "Input should be WIDTHxHEIGHT in pixels, such as 512x512, or auto"
        raise ValueError(msg)
    return int(match[1]), int(match[2])


Text = Annotated[str, BeforeValidator(_text)]
WHOLE: Final = Reading(_integer, _INTEGER.pattern)
DECIMAL: Final = Reading(_decimal, _DECIMAL.pattern)
SIZE: Final = Reading(
    _size, f"{_SIZE.pattern.replace('x*', 'xX*')}|{in_any_case(['auto'])}", replaces=True
)
OUTPUT_FORMAT: Final = Reading(_output_format, in_any_case(["png", "jpeg", "jpg", "webp"]))
PositiveInteger = Annotated[int, Field(ge=1, le=MAX_INT32), WHOLE]


def _switch_or_number(value: object) -> str | None:
    """Returns which of the two a value is, so that only that one's complaint is told."""
    match value:
        case bool():
            return "switch"
        case int() | float():
            return "number"
        case _:
            return None


SwitchOrShare = Annotated[
    Annotated[bool, Tag("switch")]
    | Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Tag("number")],
    Discriminator(
        _switch_or_number,
        custom_error_type="switch_or_number",
        custom_error_message="Input should be true, false, or a number above 0, up to 1",
    ),
    DECIMAL,
]
"""On, off, or on with a strength."""


class SchedulerBody(BaseModel):
    """A sampler: its id, and the spacing of its noise levels."""

    model_config = _STRICT

    id: Text
    """Such as ``dpmpp-2m``."""
    sigmas: Text | None = None
    """Such as ``karras``. Absent: the sampler's own."""


class LoraBody(BaseModel):
    """An adapter, and how strongly it counts."""

    model_config = _STRICT

    id: Text
    scale: Annotated[float, Field(allow_inf_nan=False), DECIMAL] | None = None
    """Absent: 1."""


class NamedLoraBody(BaseModel):
    """An adapter as other servers write it: ``name`` is its id."""

    model_config = _STRICT

    name: Text
    scale: Annotated[float, Field(allow_inf_nan=False), DECIMAL] | None = None
    """Absent: 1."""


def _scheduler(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


def _loras(value: object) -> object:
    """Returns a tuple of objects for one adapter or many, each an id or an object; forms: JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            msg = "Input should be an adapter's id, or a list of objects with id and scale"
            raise ValueError(msg) from None
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(_lora(one) for one in listed)


def _lora(value: object) -> object:
    match value:
        case str():
            return {"id": value}
        case {"name": name, **rest} if "id" not in rest:
            return {"id": name, **rest}
        case _:
            return value


_AnyLora = Text | LoraBody | NamedLoraBody
SCHEDULER: Final = BeforeValidator(_scheduler, json_schema_input_type=Text | SchedulerBody)
LORAS: Final = BeforeValidator(_loras, json_schema_input_type=_AnyLora | list[_AnyLora])
