"""The fields of an image request by OpenAI's names, and which values they take. Pure.

What a *model* can do is the server's to judge; here is what the API can say at all. A field that
is null or an empty string is absent, a field that nobody knows is ignored, and a field that cannot
be honoured is refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire_bridge.openai.errors import Problem, invalid_request
from latentwire_bridge.openai.fields import (
    DECIMAL,
    LORAS,
    MAX_INT32,
    OUTPUT_FORMAT,
    SCHEDULER,
    SIZE,
    WHOLE,
    LoraBody,
    PositiveInteger,
    Reading,
    SchedulerBody,
    SwitchOrShare,
    Text,
    absent_means,
    in_any_case,
    lower,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

MAX_IMAGES: Final = 10
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

_MAX_SHOWN_CHARACTERS: Final = 64


_QualityName = Literal["draft", "standard", "hd", "low", "medium", "high", "xhigh", "max", "auto"]
Quality = Annotated[_QualityName, Reading(lower, in_any_case(get_args(_QualityName)))]
_RESPONSE_FORMAT: Final = Reading(lower, in_any_case(["url", "b64_json"]))
_BACKGROUND: Final = Reading(lower, in_any_case(["opaque", "auto"]))
_STYLE: Final = Reading(lower, in_any_case(["vivid", "natural"]))
_MODERATION: Final = Reading(lower, in_any_case(["low", "auto"]))
_FIDELITY: Final = Reading(lower, in_any_case(["low", "high"]))


class GenerationBody(BaseModel):
    """What is drawn from a prompt."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", use_attribute_docstrings=True
    )
    unserved: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(UNSERVED, "is not served by this version; leave it out"),
        **dict.fromkeys(_OF_EDITS, "belongs to /v1/images/edits"),
    }
    """What is refused, and why."""

    prompt: Annotated[Text, Field(json_schema_extra={"pattern": r"\S"})]
    """What the image shall show."""
    model: Text | None = None
    """A model by its id, one of its aliases or one of OpenAI's names. Absent: the default one."""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES), WHOLE] | None = absent_means(1)
    """How many images; the first is drawn with ``seed``, the second with ``seed`` + 1."""
    size: Annotated[tuple[int, int] | None, SIZE] = absent_means("auto")
    """Width and height in pixels. ``auto``: the model's own size; for edits the picture's."""
    response_format: Annotated[Literal["url", "b64_json"] | None, _RESPONSE_FORMAT] = None
    """In what form images come, and then only in that. Absent: in both."""
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, OUTPUT_FORMAT] = absent_means(
        "png"
    )
    """The images' file format; ``jpg`` is ``jpeg``."""
    output_compression: Annotated[int, Field(ge=0, le=BEST_COMPRESSION), WHOLE] | None = None
    """The quality of JPEG and WebP; for PNG only 100. Absent: 90, or 100 for PNG."""
    background: Annotated[Literal["opaque", "auto"] | None, _BACKGROUND] = absent_means("auto")
    """Is opaque whatever is asked."""
    user: Text | None = None
    """For whom the image is drawn; what is longer than 64 bytes counts by its SHA-256."""
    safety_identifier: Text | None = None
    """The same as ``user``, which wins."""

    stream: bool | None = absent_means(False)  # noqa: FBT003 - a JSON value
    """Whether the answer is a stream of server-sent events."""
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES), WHOLE] | None = absent_means(
        0
    )
    """How many previews of each image a stream shows."""
    quality: Quality | None = absent_means("auto")
    """A share of the model's default steps, unless ``num_inference_steps`` is given."""

    style: Annotated[Literal["vivid", "natural"] | None, _STYLE] = None
    """Accepted, without effect."""
    moderation: Annotated[Literal["low", "auto"] | None, _MODERATION] = None
    """Accepted, without effect."""

    # Extensions; those that diffusers has by its names.
    progress: bool | None = absent_means(False)  # noqa: FBT003 - a JSON value
    """Whether a stream tells every step too."""
    negative_prompt: Text | None = None
    """What the image shall not show."""
    num_inference_steps: PositiveInteger | None = None
    """Denoising steps, up to the model's limit. Absent: as many as ``quality`` says."""
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False), DECIMAL] | None = None
    """Classifier-free guidance, up to the model's limit; 1 and less switch it off."""
    seed: Annotated[int, Field(ge=RANDOM_SEED, le=MAX_SEED), WHOLE] | None = absent_means(
        RANDOM_SEED
    )
    """Of the first image's noise; -1 draws one, which the answer tells."""
    scheduler: Annotated[SchedulerBody | None, SCHEDULER] = None
    """A sampler of the model. Absent: the model's default."""
    clip_skip: Annotated[int, Field(ge=0, le=MAX_INT32), WHOLE] | None = None
    """How many of the text encoder's last layers are skipped, up to the model's limit."""
    high_noise_frac: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), DECIMAL] | None = None
    """Where the model's refiner takes over; 1: never. Only for a model with one."""
    high_resolution_fix: SwitchOrShare | None = None
    """Whether a second pass draws over an image that is larger than the model's own, or how much of
    it. Absent: above 1.5 times the model's own area, unless the model says otherwise."""
    loras: Annotated[tuple[LoraBody, ...] | None, LORAS] = None
    """Adapters of the server by their ids, one or several; in a form also as JSON."""
    width: PositiveInteger | None = None
    """In pixels, up to the model's limit; must not contradict ``size``."""
    height: PositiveInteger | None = None
    """In pixels, up to the model's limit; must not contradict ``size``."""


class EditBody(GenerationBody):
    """What is drawn from a picture."""

    unserved: ClassVar[Mapping[str, str]] = dict.fromkeys(
        UNSERVED, "is not served by this version; leave it out"
    )

    prompt: Text
    """What the image shall show; may be empty."""
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), DECIMAL] | None = None
    """How much of the picture is redrawn. Absent: 0.8, with a mask 1, for variations 0.6."""

    input_fidelity: Annotated[Literal["low", "high"] | None, _FIDELITY] = None
    """Accepted, without effect."""


class VariationBody(EditBody):
    """What is drawn much like a picture; the prompt says nothing."""

    prompt: Text = ""
    """What the image shall show besides."""


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
