"""The size of the images: as delivered, as generated, and its limits. Pure; any thread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation, out_of_range
from latentwire_server.imaging.decode import fitted_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from latentwire_server.models.info import ModelInfo, ModelLimits
    from latentwire_server.requests.draft import RequestDraft

_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """The size of a request's images."""

    width: int
    """Of the files, as is the height."""
    height: int
    generated: tuple[int, int]
    """(width, height) at which the model generates; as delivered if there are violations."""
    violations: tuple[Violation, ...] = ()

    @property
    def delivered(self) -> tuple[int, int]:
        """(width, height) of the files."""
        return self.width, self.height


def settle_size(draft: RequestDraft, image: Image.Image | None, info: ModelInfo) -> ImageSize:
    """Returns the size that a request asks for: given, the source image's, or the model's."""
    limits, defaults = info.limits, info.defaults
    if image is None:
        width = defaults.width if draft.width is None else draft.width
        height = defaults.height if draft.height is None else draft.height
    else:
        width, height = fitted_size(
            image,
            width=draft.width,
            height=draft.height,
            multiple=limits.side_multiple,
            min_side=limits.min_side,
            max_side=limits.max_side,
            max_pixels=limits.max_pixels,
        )
    violations = [*_side("width", width, limits), *_side("height", height, limits)]
    if not violations and width * height > limits.max_pixels:
        is_height_alone = image is None and draft.width is None
        too_large = Violation(
            field="height" if is_height_alone else "width",
            reason="TOO_LARGE",
            description=f"{width}x{height} is {width * height} pixels;"
            f" allowed: {limits.max_pixels}",
        )
        violations.append(too_large)
    return ImageSize(
        width=width,
        height=height,
        generated=(width, height) if violations else generated_size(width, height, info),
        violations=tuple(violations),
    )


def generated_size(width: int, height: int, info: ModelInfo) -> tuple[int, int]:
    """Returns the width and height at which a model generates an image of this size.

    Some models do badly below ``min_drawn_pixels`` and well at their own size. Smaller images are
    generated at the model's default number of pixels, in their own proportions if the limits allow,
    and scaled down.
    """
    limits, defaults = info.limits, info.defaults
    num_pixels = width * height
    if num_pixels >= limits.min_drawn_pixels:
        return width, height
    most_pixels = min(defaults.width * defaults.height, limits.max_pixels)
    scale = min(math.sqrt(most_pixels / num_pixels), limits.max_side / max(width, height))
    if scale <= 1:
        return width, height
    multiple = limits.side_multiple
    return (
        int(width * scale / multiple + _ROUNDING) * multiple,
        int(height * scale / multiple + _ROUNDING) * multiple,
    )


def _side(name: str, side: int, limits: ModelLimits) -> Iterator[Violation]:
    low, high, step = limits.min_side, limits.max_side, limits.side_multiple
    if not low <= side <= high:
        yield out_of_range(name, side, f"{low} to {high} by {step}")
    elif side % step:
        below = side // step * step
        nearest = " and ".join(str(near) for near in (below, below + step) if low <= near <= high)
        yield Violation(
            field=name,
            reason="NOT_A_MULTIPLE",
            description=f"{name} {side} is no multiple of {step}; the nearest that work: {nearest}",
        )
