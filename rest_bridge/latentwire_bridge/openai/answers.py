"""The JSON that callers get, as types: mypy holds our code to them, the description tells them.

Nothing else may be in an answer. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config

# Pydantic reads the standard library's own only from Python 3.12 on.
from typing_extensions import TypedDict

from latentwire import ModelLimits  # noqa: TC001 - pydantic resolves annotations at run time

_STRICT: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True)

ErrorType = Literal["invalid_request_error", "server_error", "requests"]
OutputFormat = Literal["png", "jpeg", "webp"]
ToldQuality = Literal["low", "medium", "high", "xhigh", "max"]


@with_config(_STRICT)
class InputTokens(TypedDict):
    """Nothing counts in tokens here: always 0."""

    text_tokens: int
    image_tokens: int


@with_config(_STRICT)
class Usage(TypedDict):
    """Denoising steps, told as tokens of output."""

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
    """Where the file may be fetched for a while; absent if ``response_format`` is ``b64_json``."""
    seed: int
    """Draws this image again."""
    revised_prompt: NotRequired[str]
    """What was read of the prompt, if that was not all of it."""


@with_config(_STRICT)
class WarningAnswer(TypedDict):
    """Something that was done differently from what may be expected."""

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
    """Of which image, counted from 0."""
    seed: int


@with_config(_STRICT)
class ImagesAnswer(TypedDict):
    """OpenAI's ``ImagesResponse``."""

    created: int
    """Seconds since 1970."""
    data: list[ImageAnswer]
    background: Literal["opaque"]
    output_format: OutputFormat
    size: str
    """Of the images, as ``WIDTHxHEIGHT``."""
    quality: NotRequired[ToldQuality]
    """As it was drawn, by OpenAI's names; absent if ``num_inference_steps`` decided instead."""
    usage: Usage
    warnings: NotRequired[list[WarningAnswer | WithheldAnswer]]


@with_config(_STRICT)
class _ImageEvent(TypedDict):
    # Not as docstrings: pydantic does not inherit those.
    b64_json: Annotated[str, Field(description="The file in base64.")]
    created_at: Annotated[int, Field(description="Seconds since 1970.")]
    size: Annotated[str, Field(description="As ``WIDTHxHEIGHT``.")]
    quality: Annotated[
        ToldQuality | Literal["auto"],
        Field(description="As drawn; ``auto`` if ``num_inference_steps`` decided instead."),
    ]
    background: Literal["opaque"]
    output_format: OutputFormat
    image_index: Annotated[int, Field(description="Of which image, counted from 0.")]


@with_config(_STRICT)
class PartialImageEvent(_ImageEvent):
    """An image as predicted on the way."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int
    """Counted from 0 for each image."""
    step: int


@with_config(_STRICT)
class CompletedImageEvent(_ImageEvent):
    """A finished image."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    usage: Usage
    seed: int
    """Draws this image again."""
    revised_prompt: NotRequired[str]
    """What was read of the prompt, if that was not all of it."""
    warnings: NotRequired[list[WarningAnswer]]


@with_config(_STRICT)
class WarningEvent(WarningAnswer):
    """What is done differently from what may be expected; sent only if ``progress`` is true."""

    type: Literal["latentwire.warning"]


@with_config(_STRICT)
class ProgressEvent(TypedDict):
    """A step was taken; sent only if ``progress`` is true."""

    type: Literal["latentwire.progress"]
    phase: str
    step: int
    step_count: int
    fraction: float
    estimated_remaining_s: float | None


@with_config(_STRICT)
class WithheldEvent(WithheldAnswer):
    """A safety filter withheld an image; sent only if ``progress`` is true."""

    type: Literal["latentwire.withheld"]


@with_config(_STRICT)
class ErrorDetails(TypedDict):
    """What went wrong."""

    message: str
    """For people."""
    type: ErrorType
    param: str | None
    """The field that is to blame."""
    code: str | None
    """For programs."""


@with_config(_STRICT)
class ErrorAnswer(TypedDict):
    """The one form of every error; in a stream the last event's."""

    error: ErrorDetails


@with_config(_STRICT)
class SchedulerAnswer(TypedDict):
    """A sampler of a model."""

    id: str
    sigmas: list[str]
    """The spacings of its noise levels."""


@with_config(_STRICT)
class SchedulerChoiceAnswer(TypedDict):
    """A sampler, and the spacing of its noise levels."""

    id: str
    sigmas: str


@with_config(_STRICT)
class DefaultsAnswer(TypedDict):
    """What a request to a model gets when it does not say."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoiceAnswer
    high_noise_frac: NotRequired[float]
    """Where the refiner takes over; absent without one."""
    high_resolution_fix: NotRequired[float]
    """How much a second pass draws over images above 1.5 times the model's own area; 0: there is
    none; absent: the model cannot."""


@with_config(_STRICT)
class ModelAnswer(TypedDict):
    """A model, or another name of one."""

    id: str
    object: Literal["model"]
    created: int
    """Since when it is offered here, in seconds since 1970."""
    owned_by: Literal["latentwire"]
    state: str
    """``ready``, ``loading``, ``unloaded`` or ``failed``."""
    failure_message: NotRequired[str]
    """Why it failed to load."""
    capabilities: NotRequired[list[str]]
    """What it can do; absent, as what follows, while that is not known."""
    schedulers: NotRequired[list[SchedulerAnswer]]
    limits: NotRequired[ModelLimits]
    defaults: NotRequired[DefaultsAnswer]
    loras: NotRequired[list[str]]
    """Ids of the adapters that a request may ask for."""


@with_config(_STRICT)
class ModelsAnswer(TypedDict):
    """All models, the default one first, then further names."""

    object: Literal["list"]
    data: list[ModelAnswer]


@with_config(_STRICT)
class StatusAnswer(TypedDict):
    """What a probe is told."""

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
