"""A picture to start from, on its way in: the caller's files opened, judged, and cut to size.

Decoding takes milliseconds to seconds: not for the event loop. Pure.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from latentwire_server.engine.errors import Violation
from latentwire_server.engine.request import Source
from latentwire_server.imaging.decode import (
    UnusableImageError,
    decode_image,
    fitted_size,
    mask_of,
    pixels_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft, SourceDraft

DEFAULT_STRENGTHS: Final = {"image_to_image": 0.8, "inpainting": 1.0}
_CAPABILITIES: Final = {"image_to_image": "image-to-image", "inpainting": "inpainting"}


@dataclass(slots=True, kw_only=True)
class OpenedSource:
    """A draft's pictures, and all that is wrong with them."""

    draft: SourceDraft
    image: Image.Image | None = None
    mask: Image.Image | None = None
    violations: list[Violation] = field(default_factory=list)

    def size_filled_in(self, draft: RequestDraft, info: ModelInfo) -> RequestDraft:
        """Returns a request with the sides that it left open, after the picture's."""
        if self.image is None:
            return draft
        limits = info.limits
        width, height = fitted_size(
            self.image,
            width=draft.width,
            height=draft.height,
            multiple=limits.side_multiple,
            min_side=limits.min_side,
            max_side=limits.max_side,
            max_pixels=limits.max_pixels,
        )
        return replace(draft, width=width, height=height)

    def at_size(self, *, width: int, height: int, strength: float) -> Source | None:
        """Returns the source at the size of the images; None if it has violations."""
        if self.image is None or self.violations:
            return None
        draft, mask = self.draft, None
        if self.mask is not None:
            inverted = draft.mask_inverted
            mask = mask_of(self.mask, width=width, height=height, is_inverted=inverted)
        return Source(
            pixels=pixels_of(self.image, width=width, height=height),
            mask=mask,
            strength=strength,
            image_sha256=hashlib.sha256(draft.image).digest(),
            mask_sha256=hashlib.sha256(draft.mask).digest() if mask is not None else b"",
            mask_inverted=draft.mask_inverted,
        )


def open_source(draft: SourceDraft, info: ModelInfo, *, num_inference_steps: int) -> OpenedSource:
    """Opens the files; what is wrong with them, or with the strength, is kept to be told."""
    opened = OpenedSource(draft=draft)
    if _CAPABILITIES[draft.kind] not in info.capabilities:
        opened.violations.append(
            Violation(
                field=draft.kind,
                reason="UNSUPPORTED_FIELD",
                description=f"the model {info.id} cannot do {_CAPABILITIES[draft.kind]}",
            )
        )
        return opened
    opened.image = _opened(opened, "image", draft.image)
    if draft.kind == "inpainting":
        opened.mask = _opened(opened, "mask", draft.mask)
        _check_mask(opened)
    _check_strength(opened, num_inference_steps=num_inference_steps)
    return opened


def strength_of(draft: SourceDraft) -> float:
    """Returns how much is redrawn, as the caller wrote it.

    The wire rounds 0.7 to 0.69999999, and of 10 steps that would take 6.
    """
    if draft.strength is None:
        return DEFAULT_STRENGTHS[draft.kind]
    return float(str(np.float32(draft.strength)))


def mask_violation(source: Source, *, latent_size: Sequence[int]) -> Violation | None:
    """Returns what is wrong with a mask that leaves nothing to draw at the size of the images.

    It may have been cut off there, or be so fine that it falls between the latents: each of them
    follows one pixel of the mask, as in ``StableDiffusionInpaintPipeline``.
    """
    if source.mask is None:
        return None
    height, width = source.mask.shape
    rows, columns = latent_size
    if source.mask[:: height // rows, :: width // columns].any():
        return None
    return Violation(
        field="inpainting.mask",
        reason="NOTHING_TO_DRAW",
        description=f"inpainting.mask names nothing at {width}x{height}: the model sees every"
        f" {height // rows}th pixel of it, and none is to be redrawn; make the part larger",
    )


def _opened(opened: OpenedSource, name: str, data: bytes) -> Image.Image | None:
    place = f"{opened.draft.kind}.{name}"
    try:
        return decode_image(data)
    except UnusableImageError as error:
        opened.violations.append(
            Violation(field=place, reason=error.reason, description=f"{place} {error}")
        )
        return None


def _check_mask(opened: OpenedSource) -> None:
    image, mask = opened.image, opened.mask
    if image is None or mask is None:
        return
    place = "inpainting.mask"
    if mask.size != image.size:
        opened.violations.append(
            Violation(
                field=place,
                reason="SIZE_DIFFERS",
                description=f"{place} is {mask.width}x{mask.height};"
                f" allowed: the image's {image.width}x{image.height}",
            )
        )
        return
    whole = mask_of(
        mask, width=mask.width, height=mask.height, is_inverted=opened.draft.mask_inverted
    )
    if not whole.any():
        colour = "black" if opened.draft.mask_inverted else "white"
        opened.violations.append(
            Violation(
                field=place,
                reason="NOTHING_TO_DRAW",
                description=f"{place} is nowhere {colour}: nothing would be redrawn",
            )
        )


def _check_strength(opened: OpenedSource, *, num_inference_steps: int) -> None:
    place, strength = f"{opened.draft.kind}.strength", strength_of(opened.draft)
    if not (math.isfinite(strength) and 0 < strength <= 1):
        opened.violations.append(
            Violation(
                field=place,
                reason="OUT_OF_RANGE",
                description=f"{place} is {strength:g}; allowed: above 0, up to 1",
            )
        )
    elif int(num_inference_steps * strength) < 1 <= num_inference_steps:
        opened.violations.append(
            Violation(
                field=place,
                reason="NO_STEP_LEFT",
                description=f"{place} is {strength:g}, which leaves none of {num_inference_steps}"
                f" steps; allowed: {math.ceil(1000 / num_inference_steps) / 1000:g} and more",
            )
        )
