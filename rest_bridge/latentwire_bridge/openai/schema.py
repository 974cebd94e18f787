"""The body of an image request, by OpenAI's names. Pure.

The models check what the API can express at all; what a diffusion model can do is for the server to
decide. A field that is null or an empty string counts as absent, an unknown field is ignored, and a
known field that cannot be honoured is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire_bridge.openai.errors import MAX_SHOWN_CHARACTERS, Problem, invalid_request
from latentwire_bridge.openai.fields import (
    IN_ANY_CASE,
    MAX_INT32,
    WHOLE_NUMBER,
    Decimal,
    Loras,
    OutputFormat,
    PositiveInteger,
    Scheduler,
    Size,
    Switch,
    SwitchOrShare,
    Text,
)
from latentwire_bridge.openai.source_images import IMAGE_FIELDS, MASK_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema, ErrorDetails

MAX_SEED: Final = 2**63 - 1
"""The contract's seeds are int64."""
RANDOM_SEED: Final = -1
BEST_COMPRESSION: Final = 100

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
"""The names that other servers have for our fields."""
UNSERVED: Final = dict.fromkeys(
    ("frame_count", "svg", "markup"), "is not supported by this version; leave it out"
)
"""OpenAI's fields that would change the result, and that this version does not support."""

_DATA_URL: Final[JsonSchemaValue] = {"type": "string", "pattern": "^data:"}
_IMAGE: Final[JsonSchemaValue] = {
    "anyOf": [
        _DATA_URL,
        {"type": "object", "required": ["image_url"], "properties": {"image_url": _DATA_URL}},
    ],
}
_IMAGES: Final[JsonSchemaValue] = {
    "description": "A PNG, JPEG or WebP, as a data: URL in base64. One image in all.",
    "anyOf": [*_IMAGE["anyOf"], {"type": "array", "items": _IMAGE}],
}
_MASK: Final[JsonSchemaValue] = {
    "description": "Transparent where the image is edited; without transparency, white there.",
    **_IMAGE,
}

Quality = Literal["draft", "standard", "hd", "low", "medium", "high", "xhigh", "max", "auto"]


class ImageBody(BaseModel):
    """What every image request may hold."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )
    refused: ClassVar[Mapping[str, str]] = UNSERVED
    """Fields that are refused, and why."""

    prompt: Text
    """What the image shows."""
    model: Text | None = None
    """A model by id or alias, or one of OpenAI's names. Absent: the default model."""
    n: PositiveInteger = 1
    """How many images, up to the model's limit; image i has the seed ``seed`` + i."""
    size: Size = None
    """Width and height in pixels. ``auto``: the model's own size; for edits the image's."""
    response_format: Annotated[Literal["url", "b64_json"], IN_ANY_CASE] | None = None
    """How images are returned. Absent: in both forms."""
    output_format: OutputFormat = "png"
    """The images' file format."""
    output_compression: Annotated[int, Field(ge=0, le=BEST_COMPRESSION), WHOLE_NUMBER] | None = None
    """The quality of JPEG and WebP; PNG allows only 100. Absent: 90, or 100 for PNG."""
    background: Annotated[Literal["opaque", "auto"], IN_ANY_CASE] = "auto"
    """Images are always opaque."""
    user: Text | None = None
    """The end user; a name of more than 64 bytes is replaced by its SHA-256."""
    safety_identifier: Text | None = None
    """The same as ``user``, which takes precedence."""

    stream: Switch = False
    """Whether to answer with server-sent events."""
    partial_images: Annotated[int, Field(ge=0, le=3), WHOLE_NUMBER] = 0
    """How many previews of each image a stream sends."""
    quality: Annotated[Quality, IN_ANY_CASE] = "auto"
    """A share of the model's default steps, unless ``num_inference_steps`` is given."""

    style: Annotated[Literal["vivid", "natural"], IN_ANY_CASE] | None = None
    """Accepted, without effect."""
    moderation: Annotated[Literal["low", "auto"], IN_ANY_CASE] | None = None
    """Accepted, without effect."""

    # Extensions; those that diffusers has are called as in diffusers.
    progress: Switch = False
    """Whether a stream reports every step."""
    negative_prompt: Text | None = None
    """What the image must not show."""
    num_inference_steps: PositiveInteger | None = None
    """Denoising steps, up to the model's limit. Absent: as ``quality`` says."""
    guidance_scale: Decimal | None = None
    """Classifier-free guidance, up to the model's limit; 1 or less switches it off."""
    seed: Annotated[int, Field(ge=RANDOM_SEED, le=MAX_SEED), WHOLE_NUMBER] = RANDOM_SEED
    """The seed of the first image; -1 chooses one at random, which the response reports."""
    scheduler: Scheduler | None = None
    """A scheduler of the model. Absent: the model's default."""
    clip_skip: Annotated[int, Field(ge=0, le=MAX_INT32), WHOLE_NUMBER] | None = None
    """How many of the text encoder's last layers to skip, up to the model's limit."""
    high_noise_frac: Decimal | None = None
    """Where the model's refiner takes over, above 0, up to 1: never. Needs a refiner."""
    high_resolution_fix: SwitchOrShare | None = None
    """Whether a second pass refines an image that is larger than the model's own size, or how
    strongly. Absent: above 1.5 times the model's own area, unless the model says otherwise."""
    loras: Loras | None = None
    """LoRAs of the server by id, one or several; in a form also as JSON."""
    width: PositiveInteger | None = None
    """In pixels, up to the model's limit; must not contradict ``size``."""
    height: PositiveInteger | None = None
    """In pixels, up to the model's limit; must not contradict ``size``."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describes aliases and refused fields too."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema["properties"]
        for alias, name in ALIASES.items():
            if name in properties:
                description = f"Another name of `{name}`."
                properties[alias] = {**properties[name], "description": description}
        for name, reason in cls.refused.items():
            properties[name] = {"type": "null", "description": f"Refused: {reason}."}
        return schema


class GenerationBody(ImageBody):
    """A request for images from a prompt."""

    refused: ClassVar[Mapping[str, str]] = UNSERVED | dict.fromkeys(
        ("image", "image[]", "images", "mask", "mask_image", "strength", "denoising_strength"),
        "belongs to /v1/images/edits",
    )

    prompt: Annotated[Text, Field(json_schema_extra={"pattern": r"\S"})]
    """What the image shows."""


class EditBody(ImageBody):
    """A request to change an image."""

    strength: Decimal | None = None
    """How much of the image changes, above 0, up to 1. Absent: 0.8, with a mask 1."""
    input_fidelity: Annotated[Literal["low", "high"], IN_ANY_CASE] | None = None
    """Accepted, without effect."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describes the images too."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        images = dict.fromkeys(MASK_FIELDS, _MASK) | dict.fromkeys(IMAGE_FIELDS, _IMAGES)
        schema["properties"] = images | schema["properties"]
        schema["anyOf"] = [{"required": [name]} for name in IMAGE_FIELDS]
        return schema


class VariationBody(EditBody):
    """A request for images similar to an image."""

    refused: ClassVar[Mapping[str, str]] = UNSERVED | dict.fromkeys(
        MASK_FIELDS, "belongs to /v1/images/edits"
    )

    prompt: Text = ""
    """What the image shows besides."""
    strength: Decimal = 0.6
    """How much of the image changes, above 0, up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """A valid body, and the names that the caller used for fields with several names."""

    body: ImageBody
    sent_names: Mapping[str, str]


def parse_request(
    sent: Mapping[str, object],
    *,
    kind: type[ImageBody] = GenerationBody,
    is_form: bool = False,
) -> ImageRequest:
    """Returns the request that the fields of a JSON object or a form make.

    Raises:
        ApiError: Fields are wrong; the message names all of them.
    """
    # An empty prompt is passed on: edits may have one, and the server refuses it elsewhere.
    given = {
        name: value
        for name, value in sent.items()
        if value is not None and (value != "" or name == "prompt")
    }
    problems = [
        Problem(param=name, message=reason, code="unsupported_parameter")
        for name, reason in kind.refused.items()
        # False and 0 ask for what happens anyway.
        if given.get(name)
    ]
    fields, sent_names = _without_aliases(given, problems)
    try:
        body = kind.model_validate(fields, context=is_form)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems += [_problem(detail, sent_names) for detail in details]
        raise invalid_request(problems) from None
    problems += _contradictions(body)
    if problems:
        raise invalid_request(problems)
    return ImageRequest(body=body, sent_names=sent_names)


def _without_aliases(
    given: Mapping[str, object], problems: list[Problem]
) -> tuple[dict[str, object], dict[str, str]]:
    """Returns the fields by our names, and the names that the caller used for them."""
    fields = {name: value for name, value in given.items() if name not in ALIASES}
    sent_names = {name: name for name in ("width", "height") if name in given}
    if "safety_identifier" in given and "user" not in given:
        sent_names["user"] = "safety_identifier"
    for alias, name in ALIASES.items():
        if alias not in given:
            continue
        if fields.setdefault(name, given[alias]) != given[alias]:
            message = f"contradicts '{sent_names.get(name, name)}'; send only one of them"
            problems.append(Problem(param=alias, message=message))
        if name not in given:
            sent_names.setdefault(name, alias)
    return fields, sent_names


def _problem(detail: ErrorDetails, sent_names: Mapping[str, str]) -> Problem:
    field = str(detail["loc"][0])
    param = sent_names.get(field, field)
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return Problem(param=param, message="is required", code="missing_required_parameter")
    match detail["input"]:
        case dict():
            shown = "an object"
        case list() | tuple():
            shown = "an array"
        case value:
            shown = ascii(value)
            if len(shown) > MAX_SHOWN_CHARACTERS:
                shown = shown[:MAX_SHOWN_CHARACTERS] + "..."
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(param=param, message=f"{message}; got {shown}")


def _contradictions(body: ImageBody) -> Iterator[Problem]:
    if body.size is not None:
        for name, side, wanted in zip(
            ("width", "height"), (body.width, body.height), body.size, strict=True
        ):
            if side not in (None, wanted):
                yield Problem(param=name, message=f"is {side}, but 'size' says {wanted}")
    if body.output_format == "png" and body.output_compression not in (None, BEST_COMPRESSION):
        message = "must be 100 for PNG, which is lossless; use 'output_format' jpeg or webp"
        yield Problem(param="output_compression", message=message)
    if body.stream and body.response_format == "url":
        message = "must not be 'url' in a stream, which carries the images themselves"
        yield Problem(param="response_format", message=message)
