"""The image that a request starts from: the caller's files opened, checked and cut to size.

Decoding takes milliseconds to seconds: not for the event loop. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation
from latentwire_server.engine.request import Source
from latentwire_server.imaging.decode import (
    UnusableImageError,
    decode_image,
    mask_of,
    pixels_of,
)
from latentwire_server.requests.decimal_rules import strength_violations

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import SourceDraft
    from latentwire_server.requests.image_size import ImageSize

DEFAULT_STRENGTHS: Final = {"image_to_image": 0.8, "inpainting": 1.0}
_CAPABILITIES: Final = {"image_to_image": "image-to-image", "inpainting": "inpainting"}
MASK_FIELD: Final = "inpainting.mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSource:
    """A draft's image and mask, and everything that is wrong with them."""

    draft: SourceDraft | None = None
    """None: the images start from noise."""
    image: Image.Image | None = None
    """None if there is none, or it cannot be used."""
    mask: Image.Image | None = None
    """None if there is none, or it or the image cannot be used."""
    violations: tuple[Violation, ...] = ()

    def cut_mask(self, size: ImageSize) -> NDArray[np.uint8] | None:
        """Returns the mask at the size that is generated; at its own, if that is not allowed."""
        if self.mask is None:
            return None
        return self._mask_at(self.mask.size if size.violations else size.generated)

    def cut_to(self, size: ImageSize, *, mask: NDArray[np.uint8] | None) -> Source | None:
        """Returns the source of a valid request; ``mask`` is what ``cut_mask`` returned."""
        draft, (width, height) = self.draft, size.generated
        if draft is None or self.image is None:
            return None
        source = Source(
            pixels=pixels_of(self.image, width=width, height=height),
            mask=mask,
            strength=strength_of(draft),
            image_sha256=hashlib.sha256(draft.image).digest(),
            mask_sha256=hashlib.sha256(draft.mask).digest() if mask is not None else b"",
            mask_inverted=draft.mask_inverted,
        )
        if size.generated == size.delivered:
            return source
        width, height = size.delivered
        delivered = replace(
            source,
            pixels=pixels_of(self.image, width=width, height=height),
            mask=self._mask_at(size.delivered),
        )
        return replace(source, delivered=delivered)

    def _mask_at(self, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        if self.draft is None or self.mask is None:
            return None
        inverted = self.draft.mask_inverted
        return mask_of(self.mask, width=size[0], height=size[1], is_inverted=inverted)


def open_source(draft: SourceDraft | None, info: ModelInfo, *, num_steps: int) -> OpenedSource:
    """Opens the files, and collects what is wrong with them or with the strength."""
    if draft is None:
        return OpenedSource()
    capability = _CAPABILITIES[draft.kind]
    if capability not in info.capabilities:
        unsupported = Violation(
            field=draft.kind,
            reason="UNSUPPORTED_FIELD",
            description=f"the model {info.id} does not support {capability}",
        )
        return OpenedSource(draft=draft, violations=(unsupported,))
    violations: list[Violation] = []
    image = _opened(f"{draft.kind}.image", draft.image, violations)
    mask = _opened(MASK_FIELD, draft.mask, violations) if draft.kind == "inpainting" else None
    if image is not None and mask is not None and mask.size != image.size:
        differs = Violation(
            field=MASK_FIELD,
            reason="SIZE_DIFFERS",
            description=f"inpainting.mask is {mask.width}x{mask.height};"
            f" allowed: the image's {image.width}x{image.height}",
        )
        violations.append(differs)
        mask = None
    violations += strength_violations(
        f"{draft.kind}.strength", strength_of(draft), num_steps=num_steps
    )
    return OpenedSource(
        draft=draft,
        image=image,
        mask=None if image is None else mask,
        violations=tuple(violations),
    )


def strength_of(draft: SourceDraft) -> float:
    """Returns the share of the steps that are taken."""
    return DEFAULT_STRENGTHS[draft.kind] if draft.strength is None else draft.strength


def _opened(field: str, data: bytes, violations: list[Violation]) -> Image.Image | None:
    try:
        return decode_image(data)
    except UnusableImageError as error:
        violations.append(
            Violation(field=field, reason=error.reason, description=f"{field} {error}")
        )
        return None
