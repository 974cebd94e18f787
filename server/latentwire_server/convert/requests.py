"""Generation requests: from proto to draft, and back with every default filled in. No rules."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.engine.request import GenerationRequest, ImageFormat, PreviewMethod, Source
from latentwire_server.requests.draft import (
    HighResolutionFixDraft,
    LoraDraft,
    RequestDraft,
    SourceDraft,
)

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


def draft_from_proto(request: pb.GenerateImageRequest) -> RequestDraft:
    """Returns what a caller gave; 0 and empty become None where they mean unset."""
    output, events = request.output, request.events
    return RequestDraft(
        model=request.model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width or None,
        height=request.height or None,
        num_images=request.num_images or None,
        seed=request.seed if request.HasField("seed") else None,
        num_inference_steps=(
            request.num_inference_steps if request.HasField("num_inference_steps") else None
        ),
        guidance_scale=request.guidance_scale if request.HasField("guidance_scale") else None,
        scheduler_id=request.scheduler.id or None,
        sigmas=request.scheduler.sigmas or None,
        clip_skip=request.clip_skip if request.HasField("clip_skip") else None,
        high_noise_frac=request.high_noise_frac if request.HasField("high_noise_frac") else None,
        high_resolution_fix=_fix_draft(request),
        loras=tuple(
            LoraDraft(id=lora.id, scale=lora.scale if lora.HasField("scale") else None)
            for lora in request.loras
        ),
        source=_source_draft(request),
        format=_FORMAT_OF.get(output.format),
        quality=output.quality if output.HasField("quality") else None,
        metadata_omitted=output.metadata_omitted,
        max_data_bytes=output.max_data_bytes or None,
        progress_interval_steps=events.progress_interval_steps or None,
        preview_interval_steps=events.preview_interval_steps or None,
        preview_method=_PREVIEW_METHOD_OF.get(events.preview_method),
        preview_max_side=events.preview_max_side or None,
        priority=request.priority,
        user=request.user,
        labels=dict(request.labels),
        request_id=request.request_id,
        goes_on_alone=request.disconnect_policy == pb.DISCONNECT_POLICY_CONTINUE,
        resume_after_sequence=request.resume_after_sequence,
        unsupported_fields=tuple(_unserved(request)),
        unknown_enums=tuple(_unknown_enums(request)),
    )


def fingerprint(request: pb.GenerateImageRequest) -> bytes:
    """Returns a digest of all that a request says; takes milliseconds for one with pictures."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _fix_draft(request: pb.GenerateImageRequest) -> HighResolutionFixDraft | None:
    if not request.HasField("high_resolution_fix"):
        return None
    fix = request.high_resolution_fix
    strength = fix.strength if fix.HasField("strength") else None
    return HighResolutionFixDraft(is_disabled=fix.disabled, strength=strength)


def _source_draft(request: pb.GenerateImageRequest) -> SourceDraft | None:
    if request.HasField("image_to_image"):
        whole = request.image_to_image
        return SourceDraft(
            kind="image_to_image",
            image=whole.image.data,
            strength=whole.strength if whole.HasField("strength") else None,
        )
    if request.HasField("inpainting"):
        part = request.inpainting
        return SourceDraft(
            kind="inpainting",
            image=part.image.data,
            mask=part.mask.data,
            mask_inverted=part.mask_inverted,
            strength=part.strength if part.HasField("strength") else None,
        )
    return None


def _unserved(request: pb.GenerateImageRequest) -> Iterator[str]:
    if request.validate_only and request.resume_after_sequence:
        yield "resume_after_sequence"


def _unknown_enums(request: pb.GenerateImageRequest) -> Iterator[tuple[str, int]]:
    numbers = (
        ("output.format", request.output.format, pb.ImageFormat.values()),
        ("events.preview_method", request.events.preview_method, pb.PreviewMethod.values()),
        ("disconnect_policy", request.disconnect_policy, pb.DisconnectPolicy.values()),
    )
    yield from ((name, int(number)) for name, number, known in numbers if number not in known)


def effective_request(request: GenerationRequest) -> pb.GenerateImageRequest:
    """Returns a request with nothing left to default; sent as it is, it draws the same images.

    It has no request id, which names one request only, and so no policy that needs one.
    """
    output = pb.Output(
        format=_FORMATS[request.output.format],
        metadata_omitted=request.output.metadata_omitted,
        max_data_bytes=request.output.max_data_bytes,
    )
    if request.output.format is not ImageFormat.PNG:
        output.quality = request.output.quality
    source = request.source
    width, height = request.file_size
    return pb.GenerateImageRequest(
        model=request.model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_images=request.num_images,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=pb.Scheduler(id=request.scheduler.id, sigmas=request.scheduler.sigmas),
        clip_skip=request.clip_skip,
        high_noise_frac=request.high_noise_frac,
        high_resolution_fix=_fix(request),
        loras=[pb.Lora(id=lora.id, scale=lora.scale) for lora in request.loras],
        image_to_image=_image_to_image(source) if source and source.mask is None else None,
        inpainting=_inpainting(source) if source and source.mask is not None else None,
        output=output,
        events=pb.Events(
            progress_interval_steps=request.events.progress_interval_steps,
            preview_interval_steps=request.events.preview_interval_steps,
            preview_method=_PREVIEW_METHODS[request.events.preview_method],
            preview_max_side=request.events.preview_max_side,
        ),
        disconnect_policy=pb.DISCONNECT_POLICY_CANCEL,
        priority=request.priority,
        user=request.user,
        labels=request.labels,
    )


def _fix(request: GenerationRequest) -> pb.HighResolutionFix | None:
    fix = request.high_resolution_fix
    if fix is None:
        # Else the default might draw otherwise.
        is_disabled = request.high_resolution_fix_disabled
        return pb.HighResolutionFix(disabled=True) if is_disabled else None
    return pb.HighResolutionFix(width=fix.width, height=fix.height, strength=fix.strength)


def _image_to_image(source: Source) -> pb.ImageToImage:
    """Returns what the drawing started from, without the file."""
    image = pb.InputImage(sha256=source.image_sha256)
    return pb.ImageToImage(image=image, strength=source.strength)


def _inpainting(source: Source) -> pb.Inpainting:
    return pb.Inpainting(
        image=pb.InputImage(sha256=source.image_sha256),
        mask=pb.InputImage(sha256=source.mask_sha256),
        mask_inverted=source.mask_inverted,
        strength=source.strength,
    )
