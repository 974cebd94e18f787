"""Decodes callers' image files: PNG, JPEG and WebP, recognized by their bytes.

Pure functions without state: they run on any thread. Nothing is decoded before its header is
checked, so that a small file cannot become a huge image. Must not know torch, the engine or the
wire.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_INPUT_PIXELS: Final = 4096 * 4096
MAX_INPUT_BYTES: Final = 50_000_000
FORMATS: Final = ("PNG", "JPEG", "WEBP")

_WHITE: Final = (255, 255, 255, 255)
_HALF: Final = 128
_MAX_SCANS: Final = 100
"""Of a JPEG. Encoders write ten or so; each takes thirty bytes, and as long to decode as a whole
image: 10 ms for 4096x4096 pixels in grey."""
_JPEG_MARKER: Final = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
"""A marker with a length field; those without one stand within scans (ITU-T T.81, B.1.1.3)."""
_START_OF_SCAN: Final = b"\xda"
_END_OF_IMAGE: Final = b"\xd9"


class UnusableImageError(ValueError):
    """A file that is refused; the text says what is wrong and what is allowed."""

    def __init__(self, *, reason: str, text: str) -> None:
        """Creates the error from a constant, such as ``"TOO_LARGE"``, and a text for people."""
        super().__init__(text)
        self.reason = reason


def decode_image(data: bytes) -> Image.Image:
    """Returns the image in a file, turned upright by its EXIF orientation.

    Raises:
        UnusableImageError: The file is no image, is too large, has several frames, or is broken.
    """
    if not data:
        raise UnusableImageError(
            reason="REQUIRED", text="is empty; needed: a PNG, JPEG or WebP file"
        )
    if len(data) > MAX_INPUT_BYTES:
        raise UnusableImageError(
            reason="TOO_LARGE", text=f"is a file of {len(data)} bytes; allowed: {MAX_INPUT_BYTES}"
        )
    with warnings.catch_warnings():
        # Pillow warns of large images, which have our own limit, and of broken metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check(image, data)
                image.load()
                return _upright(image)
        except UnidentifiedImageError:
            raise UnusableImageError(
                reason="UNKNOWN_FORMAT",
                text="is no image that can be read; allowed: PNG, JPEG, WebP",
            ) from None
        except Image.DecompressionBombError:
            raise UnusableImageError(
                reason="TOO_LARGE", text=f"has too many pixels; allowed: {MAX_INPUT_PIXELS} in all"
            ) from None
        except UnusableImageError:
            raise
        # Pillow's parsers raise errors of all kinds for hostile bytes.
        except Exception:
            raise UnusableImageError(reason="BROKEN", text="is a broken image file") from None


def _check(image: Image.Image, data: bytes) -> None:
    if image.width * image.height > MAX_INPUT_PIXELS:
        raise UnusableImageError(
            reason="TOO_LARGE",
            text=f"has {image.width}x{image.height} pixels; allowed: {MAX_INPUT_PIXELS} in all",
        )
    num_frames = getattr(image, "n_frames", 1)
    # Cameras and phones append previews, depth maps or a second eye's view to a JPEG, which is then
    # an MPO; its first image is the photo.
    if num_frames > 1 and image.format != "MPO":
        raise UnusableImageError(reason="ANIMATED", text=f"has {num_frames} frames; allowed: 1")
    if image.format in ("JPEG", "MPO") and _num_scans(data) > _MAX_SCANS:
        raise UnusableImageError(
            reason="TOO_LARGE", text=f"has more than {_MAX_SCANS} scans; allowed: {_MAX_SCANS}"
        )


def _num_scans(jpeg: bytes) -> int:
    """Returns the number of scans of a file's first image; stops one above what is allowed."""
    num_scans, place = 0, 2
    while num_scans <= _MAX_SCANS:
        marker = _JPEG_MARKER.search(jpeg, place)
        if marker is None or marker[1] == _END_OF_IMAGE:
            break
        num_scans += marker[1] == _START_OF_SCAN
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2])
    return num_scans


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image turned upright by its EXIF orientation.

    Pillow rewrites all tags, and fails at a malformed one: it is given the orientation alone.
    """
    upright, tag, alone = image.copy(), ExifTags.Base.Orientation, Image.Exif()
    with contextlib.suppress(Exception):  # Pillow's parser of hostile tags
        alone[tag] = image.getexif().get(tag, 1)
        upright.info["exif"] = alone.tobytes()
        ImageOps.exif_transpose(upright, in_place=True)
    return upright


def fitted_size(
    image: Image.Image,
    *,
    width: int | None,
    height: int | None,
    multiple: int,
    min_side: int,
    max_side: int,
    max_pixels: int,
) -> tuple[int, int]:
    """Returns the size of the images that are generated from a source image.

    Sides that are given stay. With one of them, the other follows the source's proportions. With
    none, the source's own size is scaled until it is within the limits. Sides are rounded to the
    nearest multiple.
    """
    own_width, own_height = image.size
    if width is not None and height is not None:
        return width, height

    def rounded(side: float) -> int:
        low = -(-min_side // multiple) * multiple
        high = max_side // multiple * multiple
        return max(low, min(high, round(side / multiple) * multiple))

    if width is not None:
        return width, rounded(width * own_height / own_width)
    if height is not None:
        return rounded(height * own_width / own_height), height
    scale = max(1.0, min_side / min(image.size))
    scale = min(scale, max_side / max(image.size))
    scale = min(scale, (max_pixels / (own_width * own_height)) ** 0.5)
    width, height = rounded(own_width * scale), rounded(own_height * scale)
    while width * height > max_pixels and max(width, height) > multiple:
        if width >= height:
            width -= multiple
        else:
            height -= multiple
    return width, height


def pixels_of(image: Image.Image, *, width: int, height: int) -> NDArray[np.uint8]:
    """Returns (height, width, 3) uint8 RGB: scaled until it covers the size, then cropped.

    Transparent parts become white.
    """
    if image.mode.startswith("I"):
        # Sixteen bits a pixel, which Pillow would clip at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return np.array(fitted)


def mask_of(image: Image.Image, *, width: int, height: int, is_inverted: bool) -> NDArray[np.uint8]:
    """Returns (height, width) uint8, 255 where the mask is white and 0 where it is black.

    Scaled and cropped like the image that it belongs to, with a hard edge.
    """
    grey = Image.fromarray(pixels_of(image, width=width, height=height)).convert("L")
    is_white = np.array(grey) >= _HALF
    return np.where(is_white != is_inverted, 255, 0).astype(np.uint8)
