"""The fields of an image request by OpenAI's names, and which values they take. Pure.

What a *model* can do is the server's to judge; here is what the API can say at all. A field that
is null or an empty string is absent, a field that nobody knows is ignored, and a field that cannot
be honoured is refused by its name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from latentwire_bridge.errors import Problem, invalid_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

MAX_IMAGES: Final = 10
MAX_INT32: Final = 2**31 - 1
MAX_SEED: Final = 2**63 - 1
RANDOM_SEED: Final = -1
BEST_COMPRESSION: Final = 100
MAX_PARTIAL_IMAGES: Final = 3

ALIASES: Final[Mapping[str, str]] = {
    "steps": "num_inference_steps",
    "step": "num_inference_steps",
    "sample_steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "sample_method": "scheduler",
    "denoising_strength": "strength",
    "lora": "loras",
}
"""Other servers' names for our fields."""

UNSERVED: Final = ("frame_count", "svg", "markup")
"""Fields that would change what comes back, and that this version does not serve."""
_OF_EDITS: Final = (
    "image",
    "image[]",
    "images",
    "mask",
    "mask_image",
    "strength",
    "denoising_strength",
)

_SIZE: Final = re.compile(r"([0-9]{1,6})\s*[x*]\s*([0-9]{1,6})")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
)
_MAX_SHOWN_CHARACTERS: Final = 64


def _text(value: object) -> object:
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        msg = "Input holds half a surrogate pair, which is no character"
        raise ValueError(msg)
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _output_format(value: object) -> object:
    lower = _lower(value)
    return "jpeg" if lower == "jpg" else lower


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
    text = _lower(value)
    if not isinstance(text, str):
        return value
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None or not (int(match[1]) and int(match[2])):
        msg = "Input should be WIDTHxHEIGHT in pixels, such as 512x512, or auto"
        raise ValueError(msg)
    return int(match[1]), int(match[2])


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


Text = Annotated[str, BeforeValidator(_text)]
Integer = Annotated[int, BeforeValidator(_integer)]
PositiveInteger = Annotated[Integer, Field(ge=1, le=MAX_INT32)]


Quality = Annotated[
    Literal["draft", "standard", "hd", "low", "medium", "high", "xhigh", "max", "auto"],
    BeforeValidator(_lower),
]


class SchedulerBody(BaseModel):
    """A sampler: its id, and the spacing of its noise levels."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Text
    sigmas: Text | None = None


class LoraBody(BaseModel):
    """An adapter, and how strongly it counts."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Text
    scale: Annotated[float, BeforeValidator(_decimal), Field(allow_inf_nan=False)] | None = None


class GenerationBody(BaseModel):
    """The body of ``POST /v1/images/generations``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    unserved: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(_OF_EDITS, "belongs to /v1/images/edits"),
    }
    """What is refused, and why."""

    prompt: Text
    model: Text | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    response_format: Annotated[Literal["url", "b64_json"] | None, BeforeValidator(_lower)] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"] | None, BeforeValidator(_output_format)
    ] = None
    output_compression: Annotated[Integer, Field(ge=0, le=BEST_COMPRESSION)] | None = None
    background: Annotated[Literal["opaque", "auto"] | None, BeforeValidator(_lower)] = None
    user: Text | None = None
    safety_identifier: Text | None = None

    stream: bool | None = None
    partial_images: Annotated[Integer, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    quality: Quality | None = None

    # Accepted, without effect.
    style: Annotated[Literal["vivid", "natural"] | None, BeforeValidator(_lower)] = None
    moderation: Annotated[Literal["low", "auto"] | None, BeforeValidator(_lower)] = None

    # Extensions; those that diffusers has by its names.
    progress: bool | None = None
    negative_prompt: Text | None = None
    num_inference_steps: PositiveInteger | None = None
    guidance_scale: (
        Annotated[float, BeforeValidator(_decimal), Field(ge=0, allow_inf_nan=False)] | None
    ) = None
    seed: Annotated[Integer, Field(ge=RANDOM_SEED, le=MAX_SEED)] | None = None
    scheduler: Annotated[SchedulerBody | None, BeforeValidator(_scheduler)] = None
    clip_skip: Annotated[Integer, Field(ge=0, le=MAX_INT32)] | None = None
    high_noise_frac: (
        Annotated[float, BeforeValidator(_decimal), Field(gt=0, le=1, allow_inf_nan=False)] | None
    ) = None
    loras: Annotated[tuple[LoraBody, ...] | None, BeforeValidator(_loras)] = None
    width: PositiveInteger | None = None
    height: PositiveInteger | None = None


class EditBody(GenerationBody):
    """The body of ``POST /v1/images/edits``, without its pictures."""

    unserved: ClassVar[Mapping[str, str]] = {}

    strength: (
        Annotated[float, BeforeValidator(_decimal), Field(gt=0, le=1, allow_inf_nan=False)] | None
    ) = None

    # Accepted, without effect.
    input_fidelity: Annotated[Literal["low", "high"] | None, BeforeValidator(_lower)] = None


class VariationBody(EditBody):
    """The body of ``POST /v1/images/variations``, without its picture: its prompt says nothing."""

    prompt: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """A valid body, and the names under which the caller sent what has several names."""

    body: GenerationBody
    sent_names: Mapping[str, str]


def parse_request(
    sent: Mapping[str, object], *, kind: type[GenerationBody] = GenerationBody
) -> ImageRequest:
    """Returns the request that a JSON object or a form makes.

    Args:
        sent: The fields.
        kind: What they must make.

    Raises:
        ApiError: the API has no such request; all that is wrong is told at once.
    """
    given = {name: value for name, value in sent.items() if _is_given(name, value)}
    problems = list(_unserved(given, kind.unserved))
    fields, sent_names = _without_aliases(given, problems)
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems += [_problem(detail, sent_names) for detail in details]
        raise invalid_request(problems) from None
    problems += _contradictions(body)
    if problems:
        raise invalid_request(problems)
    return ImageRequest(body=body, sent_names=sent_names)


def _is_given(name: str, value: object) -> bool:
    # An empty prompt is the server's to refuse: it is required.
    return value is not None and (value != "" or name == "prompt")


def _unserved(given: Mapping[str, object], unserved: Mapping[str, str]) -> Iterator[Problem]:
    for name, reason in unserved.items():
        # False and 0 ask for what happens anyway.
        if given.get(name):
            yield Problem(param=name, message=reason, code="unsupported_parameter")


def _without_aliases(
    given: Mapping[str, object], problems: list[Problem]
) -> tuple[dict[str, object], dict[str, str]]:
    """Returns the fields by our names, and the names that the caller used instead."""
    fields = {name: value for name, value in given.items() if name not in ALIASES}
    sent_names = {name: name for name in ("width", "height") if name in given}
    if "safety_identifier" in given and "user" not in given:
        sent_names["user"] = "safety_identifier"
    for alias, name in ALIASES.items():
        if alias not in given:
            continue
        if fields.setdefault(name, given[alias]) != given[alias]:
            message = f"contradicts '{sent_names.get(name, name)}'; send one of them"
            problems.append(Problem(param=alias, message=message))
        if name not in given:
            sent_names.setdefault(name, alias)
    return fields, sent_names


def _problem(detail: ErrorDetails, sent_names: Mapping[str, str]) -> Problem:
    field = str(detail["loc"][0])
    param = sent_names.get(field, field)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return Problem(param=param, message="is required", code="missing_required_parameter")
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(param=param, message=f"{message}; got {_shown(detail['input'])}")


def _contradictions(body: GenerationBody) -> Iterator[Problem]:
    if body.size is not None:
        for name, side, wanted in zip(
            ("width", "height"), (body.width, body.height), body.size, strict=True
        ):
            if side not in (None, wanted):
                yield Problem(param=name, message=f"is {side}, but 'size' says {wanted}")
    is_lossless = body.output_format in (None, "png")
    if is_lossless and body.output_compression not in (None, BEST_COMPRESSION):
        yield Problem(
            param="output_compression",
            message="below 100 is not possible for PNG, which is lossless; ask for jpeg or webp",
        )
    if body.stream and body.response_format == "url":
        yield Problem(
            param="response_format",
            message="a stream carries the images themselves; leave it out or ask for b64_json",
        )


def _shown(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            text = ascii(value)
            more = "..." if len(text) > _MAX_SHOWN_CHARACTERS else ""
            return text[:_MAX_SHOWN_CHARACTERS] + more
