"""The JSON of answers and events, as types that mypy checks and the API's description is made of.

Answers have no other fields. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config

# Pydantic reads the standard library's own only from Python 3.12 on.
from typing_extensions import TypedDict

from latentwire import ModelLimits  # noqa: TC001 - pydantic resolves annotations at run time

_STRICT: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True)

ErrorType = Literal["invalid_request_error", "server_error", "requests"]
FileFormat = Literal["png", "jpeg", "webp"]
AnswerQuality = Literal["low", "medium", "high", "xhigh", "max"]


@with_config(_STRICT)
class InputTokens(TypedDict):
    """Always 0: nothing counts in tokens here."""

    text_tokens: int
    image_tokens: int


@with_config(_STRICT)
class Usage(TypedDict):
    """Denoising steps, as output tokens."""

    total_tokens: int
    input_tokens: int
    """0."""
    output_tokens: int
    """The steps of all images."""
    input_tokens_details: InputTokens


@with_config(_STRICT)
class ImageAnswer(TypedDict):
    """One image."""

    b64_json: NotRequired[str]
    """The file in base64; absent if ``response_format`` is ``url``."""
    url: NotRequired[str]
    """Where to download the file for a while; absent if ``response_format`` is ``b64_json``."""
    seed: int
    """Reproduces this image."""
    revised_prompt: NotRequired[str]
    """The part of the prompt that was used, if that was not all of it."""


@with_config(_STRICT)
class WarningAnswer(TypedDict):
    """Something that was done differently than may be expected."""

    param: str
    code: str
    message: str


@with_config(_STRICT)
class WithheldAnswer(TypedDict):
    """An image that a safety filter withheld."""

    param: None
    code: Literal["content_policy_violation"]
    message: str
    image_index: int
    """The image's index, from 0."""
    seed: int


@with_config(_STRICT)
class ImagesAnswer(TypedDict):
    """OpenAI's ``ImagesResponse``."""

    created: int
    """Seconds since 1970."""
    data: list[ImageAnswer]
    background: Literal["opaque"]
    output_format: FileFormat
    size: str
    """The images' size, as ``WIDTHxHEIGHT``."""
    quality: NotRequired[AnswerQuality]
    """Absent if ``num_inference_steps`` was given instead."""
    usage: Usage
    warnings: NotRequired[list[WarningAnswer | WithheldAnswer]]


@with_config(_STRICT)
class _ImageEvent(TypedDict):
    # Not as docstrings: pydantic does not inherit those.
    b64_json: Annotated[str, Field(description="The file in base64.")]
    created_at: Annotated[int, Field(description="Seconds since 1970.")]
    size: Annotated[str, Field(description="As ``WIDTHxHEIGHT``.")]
    quality: Annotated[
        AnswerQuality | Literal["auto"],
        Field(description="``auto`` if ``num_inference_steps`` was given instead."),
    ]
    background: Literal["opaque"]
    output_format: FileFormat
    image_index: Annotated[int, Field(description="The image's index, from 0.")]


@with_config(_STRICT)
class PartialImageEvent(_ImageEvent):
    """A preview: the image as predicted at a step."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int
    """The number of the preview, from 0 for each image."""
    step: int


@with_config(_STRICT)
class CompletedImageEvent(_ImageEvent):
    """A finished image."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    usage: Usage
    seed: int
    """Reproduces this image."""
    revised_prompt: NotRequired[str]
    """The part of the prompt that was used, if that was not all of it."""
    warnings: NotRequired[list[WarningAnswer]]


@with_config(_STRICT)
class WarningEvent(WarningAnswer):
    """A warning before the first image; sent only if ``progress`` is true."""

    type: Literal["latentwire.warning"]


@with_config(_STRICT)
class ProgressEvent(TypedDict):
    """A finished step; sent only if ``progress`` is true."""

    type: Literal["latentwire.progress"]
    phase: str
    step: int
    step_count: int
    fraction: float
    estimated_remaining_s: float | None


@with_config(_STRICT)
class WithheldEvent(WithheldAnswer):
    """An image that a safety filter withheld; sent only if ``progress`` is true."""

    type: Literal["latentwire.withheld"]


@with_config(_STRICT)
class ErrorDetails(TypedDict):
    """What went wrong."""

    message: str
    """For people."""
    type: ErrorType
    param: str | None
    """The field that is wrong."""
    code: str | None
    """For programs."""


@with_config(_STRICT)
class ErrorAnswer(TypedDict):
    """Every error; in a stream the last event."""

    error: ErrorDetails


@with_config(_STRICT)
class SchedulerAnswer(TypedDict):
    """A scheduler of a model."""

    id: str
    sigmas: list[str]
    """The spacings of noise levels that it supports."""


@with_config(_STRICT)
class SchedulerChoiceAnswer(TypedDict):
    """A scheduler and the spacing of its noise levels."""

    id: str
    sigmas: str


@with_config(_STRICT)
class DefaultsAnswer(TypedDict):
    """The values of fields that a request leaves out."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoiceAnswer
    high_noise_frac: NotRequired[float]
    """Where the refiner takes over; absent if there is none."""
    high_resolution_fix: NotRequired[float]
    """The strength of the second pass over images above 1.5 times the model's own area; 0: no such
    pass; absent: not supported."""


@with_config(_STRICT)
class ModelAnswer(TypedDict):
    """A model, or another name of one."""

    id: str
    object: Literal["model"]
    created: int
    """When the bridge started, in seconds since 1970."""
    owned_by: Literal["latentwire"]
    state: str
    """``ready``, ``loading``, ``unloaded`` or ``failed``."""
    failure_message: NotRequired[str]
    """Why it failed to load."""
    capabilities: NotRequired[list[str]]
    """Absent, like the fields below, until the model was loaded once."""
    schedulers: NotRequired[list[SchedulerAnswer]]
    limits: NotRequired[ModelLimits]
    defaults: NotRequired[DefaultsAnswer]
    loras: NotRequired[list[str]]
    """Ids of the LoRAs that a request may use."""


@with_config(_STRICT)
class ModelsAnswer(TypedDict):
    """All models, the default one first, then their further names."""

    object: Literal["list"]
    data: list[ModelAnswer]


@with_config(_STRICT)
class StatusAnswer(TypedDict):
    """The state of the bridge or of the server."""

    status: Literal["ok", "ready"]


Answer = (
    ImagesAnswer
    | PartialImageEvent
    | CompletedImageEvent
    | ProgressEvent
    | WarningEvent
    | WithheldEvent
    | ErrorAnswer
    | ModelAnswer
    | ModelsAnswer
    | StatusAnswer
)
