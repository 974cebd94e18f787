"""Turns keyword options into a ``GenerateImageRequest``. No I/O; the server validates values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypedDict, TypeVar

from latentwire.v1 import image_generation_pb2 as pb

EnumT = TypeVar("EnumT", bound=int)


class GenerateOptions(TypedDict, total=False):
    """The options of a generation besides its prompt.

    Names, units and defaults are those of ``GenerateImageRequest``; None means "not given".
    """

    model: str | None
    negative_prompt: str | None
    width: int | None
    """In pixels."""
    height: int | None
    """In pixels."""
    num_images: int | None
    seed: int | None
    """Of the first image; image *i* uses ``seed + i``."""
    num_inference_steps: int | None
    guidance_scale: float | None
    scheduler: str | tuple[str, str] | None
    """An id such as ``"dpmpp-2m"``, or an id and a spacing of noise levels, as in
    ``("dpmpp-2m", "karras")``."""
    clip_skip: int | None
    high_noise_frac: float | None
    """Where the model's refiner takes over: above 0, up to 1 (never)."""
    high_resolution_fix: float | bool | None
    """Whether an image larger than the model's native size gets a second pass: True, with the
    model's strength; a number above 0, up to 1, with that strength; False, no second pass."""
    loras: Mapping[str, float] | Sequence[str | tuple[str, float]] | None
    """LoRA scales by id, or a list of ids and of ``(id, scale)`` pairs."""
    image: bytes | None
    """The PNG, JPEG or WebP file to start from."""
    mask: bytes | None
    """An image file of the same size as ``image``, whose white area is regenerated. Needs
    ``image``."""
    mask_inverted: bool | None
    """Regenerates the black area of ``mask`` instead."""
    strength: float | None
    """How much ``image`` changes: above 0, up to 1. Needs ``image``."""
    image_format: str | None
    """``"png"``, ``"jpeg"`` or ``"webp"``."""
    quality: int | None
    """Of JPEG and WebP, 1 to 100."""
    metadata_omitted: bool | None
    max_data_bytes: int | None
    """Most image bytes per message."""
    progress_interval_steps: int | None
    preview_interval_steps: int | None
    preview_method: str | None
    """``"linear"`` or ``"full-vae"``."""
    preview_max_side: int | None
    """In pixels."""
    priority: int | None
    """-100 to 100; higher is served first."""
    user: str | None
    labels: Mapping[str, str] | None
    request_id: str | None
    """A UUID that makes the request idempotent: a repeated request joins the first generation."""
    resume_after_sequence: int | None
    """Skips the events up to this sequence number. Needs ``request_id``."""
    disconnect_policy: str | None
    """What happens when the connection breaks: ``"cancel"``, or ``"continue"``, which needs a
    ``request_id``."""
    validate_only: bool | None


IMAGE_FORMATS: Final[Mapping[str, pb.ImageFormat]] = {
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
}
PREVIEW_METHODS: Final[Mapping[str, pb.PreviewMethod]] = {
    "linear": pb.PREVIEW_METHOD_LINEAR,
    "full-vae": pb.PREVIEW_METHOD_FULL_VAE,
}
DISCONNECT_POLICIES: Final[Mapping[str, pb.DisconnectPolicy]] = {
    "cancel": pb.DISCONNECT_POLICY_CANCEL,
    "continue": pb.DISCONNECT_POLICY_CONTINUE,
}
_OUTPUT_FIELDS: Final = frozenset({"quality", "metadata_omitted", "max_data_bytes"})
_SOURCE_FIELDS: Final = frozenset({"image", "mask", "mask_inverted", "strength"})
_EVENTS_FIELDS: Final = frozenset(
    {"progress_interval_steps", "preview_interval_steps", "preview_max_side"}
)


def build_request(
    prompt: str | pb.GenerateImageRequest, options: GenerateOptions
) -> pb.GenerateImageRequest:
    """Returns the request for a prompt, or a copy of a request with the options applied.

    Raises:
        TypeError: An option is unknown, or its value has the wrong type.
        ValueError: A choice such as ``image_format`` is unknown, or a number is out of range.
    """
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        msg = f"unknown options: {', '.join(sorted(unknown))}"
        raise TypeError(msg)
    request = pb.GenerateImageRequest()
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.CopyFrom(prompt)
    for name, value in options.items():
        if value is not None and name not in _SOURCE_FIELDS:
            _set_option(request, name, value)
    _set_source(request, options)
    return request


def _set_source(request: pb.GenerateImageRequest, options: GenerateOptions) -> None:
    image, mask = options.get("image"), options.get("mask")
    strength, mask_inverted = options.get("strength"), options.get("mask_inverted")
    if image is None and request.WhichOneof("source") is None:
        if (mask, strength, mask_inverted) != (None, None, None):
            msg = "mask, mask_inverted and strength need an image"
            raise TypeError(msg)
        return
    has_mask = mask is not None or request.HasField("inpainting")
    if mask_inverted is not None and not has_mask:
        msg = "mask_inverted needs a mask"
        raise TypeError(msg)
    source = request.inpainting if has_mask else request.image_to_image
    if image is not None:
        source.image.data = image
    if strength is not None:
        source.strength = strength
    if mask is not None:
        request.inpainting.mask.data = mask
    if mask_inverted is not None:
        request.inpainting.mask_inverted = mask_inverted


def _set_option(request: pb.GenerateImageRequest, name: str, value: object) -> None:
    if name == "scheduler":
        request.scheduler.CopyFrom(_scheduler(value))
    elif name == "loras":
        request.ClearField("loras")
        request.loras.extend(_loras(value))
    elif name == "labels":
        request.ClearField("labels")
        if not isinstance(value, Mapping):
            msg = f"labels is {value!r}; needed: a mapping of strings to strings"
            raise TypeError(msg)
        request.MergeFrom(pb.GenerateImageRequest(labels=value))
    elif name == "image_format":
        request.output.format = _choice(name, value, IMAGE_FORMATS)
    elif name == "preview_method":
        request.events.preview_method = _choice(name, value, PREVIEW_METHODS)
    elif name == "disconnect_policy":
        request.disconnect_policy = _choice(name, value, DISCONNECT_POLICIES)
    elif name == "high_resolution_fix":
        _set_fix(request, value)
    elif name in _OUTPUT_FIELDS:
        setattr(request.output, name, value)
    elif name in _EVENTS_FIELDS:
        setattr(request.events, name, value)
    else:
        setattr(request, name, value)


def _set_fix(request: pb.GenerateImageRequest, value: object) -> None:
    request.ClearField("high_resolution_fix")
    match value:
        case True:
            # Present but empty: with the model's strength.
            request.high_resolution_fix.SetInParent()
        case False:
            request.high_resolution_fix.disabled = True
        case int() | float():
            request.high_resolution_fix.strength = value
        case _:
            msg = f"high_resolution_fix is {value!r}; needed: True, False or a number"
            raise TypeError(msg)


def _scheduler(value: object) -> pb.Scheduler:
    match value:
        case str():
            return pb.Scheduler(id=value)
        case (str() as scheduler_id, str() as sigmas):
            return pb.Scheduler(id=scheduler_id, sigmas=sigmas)
        case _:
            msg = f"scheduler is {value!r}; needed: an id, or an id and a spacing of noise levels"
            raise TypeError(msg)


def _loras(value: object) -> Iterator[pb.Lora]:
    if isinstance(value, Mapping):
        value = value.items()
    elif isinstance(value, str) or not isinstance(value, Sequence):
        msg = f"loras is {value!r}; needed: scales by id, or a list"
        raise TypeError(msg)
    for lora in value:
        match lora:
            case str() as id_:
                yield pb.Lora(id=id_)
            case (str() as id_, int() | float() as scale):
                yield pb.Lora(id=id_, scale=scale)
            case _:
                msg = f"loras has {lora!r}; needed: an id, or an id and a scale"
                raise TypeError(msg)


def _choice(name: str, value: object, choices: Mapping[str, EnumT]) -> EnumT:
    try:
        return choices[str(value)]
    except KeyError:
        msg = f"{name} is {value!r}; allowed: {', '.join(choices)}"
        raise ValueError(msg) from None
