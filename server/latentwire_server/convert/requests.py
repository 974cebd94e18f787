"""Generation requests: from proto to draft, and back with every default filled in. No rules."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.engine.request import GenerationRequest, ImageFormat, PreviewMethod, Source
from latentwire_server.models.info import LoraChoice
from latentwire_server.requests.draft import HighResolutionFixDraft, RequestDraft, SourceDraft

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMATS: Final = {
    ImageFormat.PNG: pb.IMAGE_FORMAT_PNG,
    ImageFormat.JPEG: pb.IMAGE_FORMAT_JPEG,
    ImageFormat.WEBP: pb.IMAGE_FORMAT_WEBP,
}
_PREVIEW_METHODS: Final = {
    PreviewMethod.LINEAR: pb.PREVIEW_METHOD_LINEAR,
    PreviewMethod.FULL_VAE: pb.PREVIEW_METHOD_FULL_VAE,
}
_FORMAT_OF: Final = {number: format_ for format_, number in _FORMATS.items()}
_PREVIEW_METHOD_OF: Final = {number: method for method, number in _PREVIEW_METHODS.items()}

# Fields that have the same name and meaning in the contract, the draft and the engine's request.
_PLAIN: Final = ("prompt", "negative_prompt", "priority", "user")
_UNSET_IF_ZERO: Final = ("width", "height", "num_images")
_OPTIONAL: Final = ("seed", "num_inference_steps", "clip_skip")
_FRACTIONS: Final = ("guidance_scale", "high_noise_frac")
_EVENTS: Final = ("progress_interval_steps", "preview_interval_steps", "preview_max_side")


def draft_from_proto(request: pb.GenerateImageRequest) -> RequestDraft:
    """Returns what a caller gave; 0 and empty become None where they mean unset."""
    output, events = request.output, request.events
    return RequestDraft(
        **{name: getattr(request, name) for name in _PLAIN},
        **{name: getattr(request, name) for name in _UNSET_IF_ZERO if getattr(request, name)},
        **{name: getattr(request, name) for name in _OPTIONAL if request.HasField(name)},
        **{name: getattr(events, name) for name in _EVENTS if getattr(events, name)},
        guidance_scale=_as_written(request, "guidance_scale"),
        high_noise_frac=_as_written(request, "high_noise_frac"),
        model=request.model,
        scheduler_id=request.scheduler.id or None,
        sigmas=request.scheduler.sigmas or None,
        high_resolution_fix=_fix_draft(request),
        loras=tuple(
            LoraChoice(id=lora.id, scale=lora.scale if lora.HasField("scale") else 1.0)
            for lora in request.loras
        ),
        source=_source_draft(request),
        format=_FORMAT_OF.get(output.format),
        quality=output.quality if output.HasField("quality") else None,
        metadata_omitted=output.metadata_omitted,
        max_data_bytes=output.max_data_bytes or None,
        preview_method=_PREVIEW_METHOD_OF.get(events.preview_method),
        labels=dict(request.labels),
        request_id=request.request_id,
        goes_on_alone=request.disconnect_policy == pb.DISCONNECT_POLICY_CONTINUE,
        resume_after_sequence=request.resume_after_sequence,
        # There is nothing to resume after a request that is only checked.
        unsupported_fields=("resume_after_sequence",)
        if request.validate_only and request.resume_after_sequence
        else (),
        unknown_enums=tuple(_unknown_enums(request)),
    )


def fingerprint(request: pb.GenerateImageRequest) -> bytes:
    """Returns a digest of what a request asks for; equal requests have equal ones.

    Takes milliseconds for a request with images.
    """
    asked = pb.GenerateImageRequest()
    asked.CopyFrom(request)
    asked.ClearField("request_id")
    asked.ClearField("resume_after_sequence")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()


def _as_written(
    message: pb.GenerateImageRequest | pb.HighResolutionFix | pb.ImageToImage | pb.Inpainting,
    name: str,
) -> float | None:
    """Returns an optional fraction as the caller wrote it: the shortest that is the same float32.

    On the wire 0.7 is 0.69999999, and of 10 steps that would take 6.
    """
    return float(str(np.float32(getattr(message, name)))) if message.HasField(name) else None


def _fix_draft(request: pb.GenerateImageRequest) -> HighResolutionFixDraft | None:
    if not request.HasField("high_resolution_fix"):
        return None
    fix = request.high_resolution_fix
    return HighResolutionFixDraft(is_disabled=fix.disabled, strength=_as_written(fix, "strength"))


def _source_draft(request: pb.GenerateImageRequest) -> SourceDraft | None:
    if request.HasField("image_to_image"):
        whole = request.image_to_image
        return SourceDraft(
            kind="image_to_image", image=whole.image.data, strength=_as_written(whole, "strength")
        )
    if request.HasField("inpainting"):
        part = request.inpainting
        return SourceDraft(
            kind="inpainting",
            image=part.image.data,
            mask=part.mask.data,
            mask_inverted=part.mask_inverted,
            strength=_as_written(part, "strength"),
        )
    return None


def _unknown_enums(request: pb.GenerateImageRequest) -> Iterator[tuple[str, int]]:
    numbers = (
        ("output.format", request.output.format, pb.ImageFormat.values()),
        ("events.preview_method", request.events.preview_method, pb.PreviewMethod.values()),
        ("disconnect_policy", request.disconnect_policy, pb.DisconnectPolicy.values()),
    )
    yield from ((name, int(number)) for name, number, known in numbers if number not in known)


def effective_request(request: GenerationRequest) -> pb.GenerateImageRequest:
    """Returns a request with no default left to fill in; sent back, it gives the same images.

    It has no request id, which identifies one request only, and so no policy that needs one.
    """
    width, height = request.file_size
    output, events, source = request.output, request.events, request.source
    sent = pb.GenerateImageRequest(
        **{name: getattr(request, name) for name in (*_PLAIN, *_OPTIONAL, *_FRACTIONS)},
        model=request.model,
        width=width,
        height=height,
        num_images=request.num_images,
        scheduler=pb.Scheduler(id=request.scheduler.id, sigmas=request.scheduler.sigmas),
        high_resolution_fix=_fix(request),
        loras=[pb.Lora(id=lora.id, scale=lora.scale) for lora in request.loras],
        output=pb.Output(
            format=_FORMATS[output.format],
            quality=None if output.format is ImageFormat.PNG else output.quality,
            metadata_omitted=output.metadata_omitted,
            max_data_bytes=output.max_data_bytes,
        ),
        events=pb.Events(
            **{name: getattr(events, name) for name in _EVENTS},
            preview_method=_PREVIEW_METHODS[events.preview_method],
        ),
        disconnect_policy=pb.DISCONNECT_POLICY_CANCEL,
        labels=request.labels,
    )
    if source is not None:
        _add_source(sent, source)
    return sent


def _fix(request: GenerationRequest) -> pb.HighResolutionFix | None:
    fix = request.high_resolution_fix
    if fix is not None:
        return pb.HighResolutionFix(width=fix.width, height=fix.height, strength=fix.strength)
    # Otherwise the model's default might apply.
    return pb.HighResolutionFix(disabled=True) if request.high_resolution_fix_disabled else None


def _add_source(sent: pb.GenerateImageRequest, source: Source) -> None:
    """Adds what the images start from, with digests in the place of the files."""
    image = pb.InputImage(sha256=source.image_sha256)
    if source.mask is None:
        sent.image_to_image.CopyFrom(pb.ImageToImage(image=image, strength=source.strength))
        return
    part = pb.Inpainting(
        image=image,
        mask=pb.InputImage(sha256=source.mask_sha256),
        mask_inverted=source.mask_inverted,
        strength=source.strength,
    )
    sent.inpainting.CopyFrom(part)
