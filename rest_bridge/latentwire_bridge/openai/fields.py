"""The types of request fields. Pure.

Forms carry text only, JavaScript has floats only, and clients differ in capitals. Validators accept
such spellings silently; the API's description shows the plain types.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)

MAX_INT32: Final = 2**31 - 1

_STRICT: Final = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)
_SIZE: Final = re.compile(r"([1-9][0-9]{0,5})\s*[x*]\s*([1-9][0-9]{0,5})")
# Python's own int() and float() also read other digits, underscores, "nan" and "inf".
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
)


def _text(value: object) -> object:
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        msg = "Input should be valid Unicode, without unpaired surrogates"
        raise ValueError(msg)
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _output_format(value: object) -> object:
    name = _lower(value)
    return "jpeg" if name == "jpg" else name


def _integer(value: object) -> object:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _decimal(value: object) -> object:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        return float(value)
    return value


def _switch(value: object, info: ValidationInfo) -> object:
    """Accepts ``true`` and ``false`` as text from forms, which have no booleans."""
    is_form = bool(info.context)
    if is_form and isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    return value


def _size(value: object) -> object:
    text = _lower(value)
    if not isinstance(text, str):
        return value
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        msg = "Input should be WIDTHxHEIGHT in pixels, such as 512x512, or auto"
        raise ValueError(msg)
    return int(match[1]), int(match[2])


def _switch_or_number(value: object) -> str | None:
    # With a discriminator, pydantic reports the errors of one alternative instead of both.
    match value:
        case bool():
            return "switch"
        case int() | float():
            return "number"
        case _:
            return None


IN_ANY_CASE: Final = BeforeValidator(_lower)
Text = Annotated[str, BeforeValidator(_text)]
# Bounds come before the validator: pydantic describes only those that apply to the type itself.
WHOLE_NUMBER: Final = BeforeValidator(_integer)
PositiveInteger = Annotated[int, Field(ge=1, le=MAX_INT32), WHOLE_NUMBER]
Decimal = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_decimal)]
Switch = Annotated[bool, BeforeValidator(_switch)]
OutputFormat = Annotated[Literal["png", "jpeg", "webp"], BeforeValidator(_output_format)]
Size = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_size),
    WithJsonSchema(
        {"type": "string", "pattern": "^([1-9][0-9]*x[1-9][0-9]*|auto)$", "default": "auto"}
    ),
]
SwitchOrShare = Annotated[
    Annotated[bool, Tag("switch")]
    | Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Tag("number")],
    Discriminator(
        _switch_or_number,
        custom_error_type="switch_or_number",
        custom_error_message="Input should be true, false, or a number above 0, up to 1",
    ),
    BeforeValidator(_decimal),
    BeforeValidator(_switch),
]


class SchedulerBody(BaseModel):
    """A scheduler and the spacing of its noise levels."""

    model_config = _STRICT

    id: Text
    """Such as ``dpmpp-2m``."""
    sigmas: Text | None = None
    """Such as ``karras``. Absent: the scheduler's own."""


class LoraBody(BaseModel):
    """A LoRA and its weight."""

    model_config = _STRICT

    id: Text
    scale: Decimal | None = None
    """Absent: 1."""


class NamedLoraBody(BaseModel):
    """A LoRA as other servers write it: ``name`` is its id."""

    model_config = _STRICT

    name: Text
    scale: Decimal | None = None
    """Absent: 1."""


def _scheduler(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


def _loras(value: object) -> object:
    """Returns a tuple for one LoRA or many, each an id or an object; forms send JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            msg = "Input should be a LoRA's id, or a list of objects with id and scale"
            raise ValueError(msg) from None
    return tuple(_lora(one) for one in (value if isinstance(value, list | tuple) else [value]))


def _lora(value: object) -> object:
    match value:
        case str():
            return {"id": value}
        case {"name": name, **rest} if "id" not in rest:
            return {"id": name, **rest}
        case _:
            return value


_AnyLora = Text | LoraBody | NamedLoraBody
Scheduler = Annotated[
    SchedulerBody, BeforeValidator(_scheduler, json_schema_input_type=Text | SchedulerBody)
]
Loras = Annotated[
    tuple[LoraBody, ...], BeforeValidator(_loras, json_schema_input_type=_AnyLora | list[_AnyLora])
]
