"""Encodes image files, with the request that reproduces the image written inside.

Pure functions without state: they run on any thread, and on several at once (Pillow releases the
interpreter lock while it compresses). Must not know torch, the engine or the wire.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

PNG_DESCRIPTION_KEY: Final = "latentwire"
"""Keyword of the PNG text chunk that holds the description."""

# Measured on one Xeon core, 1024x1024 with grain: level 0 75 ms and 3.1 MB, level 1 to 3 about
# 200 ms and 2.1 MB, level 4 to 9 about 300 ms and 1.9 MB. A CPU device waits for this; a tenth more
# bytes on the network cost less.
PNG_COMPRESS_LEVEL: Final = 1
_PREVIEW_JPEG_QUALITY: Final = 80

_EXIF_IFD: Final = 0x8769
_EXIF_USER_COMMENT: Final = 0x9286
# Exif 2.32, 4.6.5: the first 8 bytes of a UserComment name its character code. UTF-8 has no code
# of its own and goes under "undefined": UTF-16 would double a long English prompt.
_USER_COMMENT_ASCII: Final = b"ASCII\0\0\0"
_USER_COMMENT_UNDEFINED: Final = b"\0" * 8
# A JPEG segment's length field counts itself and has 16 bits.
_MAX_JPEG_SEGMENT_BYTES: Final = 65_533


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """An image file in memory. Sides in pixels."""

    data: bytes
    media_type: str
    width: int
    height: int


def encode_image(
    pixels: NDArray[np.uint8], *, image_format: str, quality: int, description: str | None
) -> EncodedImage:
    """Encodes a finished image.

    The description goes into an iTXt chunk named ``latentwire`` (PNG) or into the EXIF
    ``UserComment`` (JPEG, WebP), in any language. A JPEG holds 64 KiB of EXIF at most: a longer
    description is left out, and the image is the same.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        image_format: ``"png"``, ``"jpeg"`` or ``"webp"``.
        quality: 1 to 100; PNG is lossless and ignores it.
        description: What to write into the file, or None for nothing.

    Raises:
        ValueError: The format is none of the three, or the pixels are not of that shape and type.
    """
    image = _image_from_pixels(pixels)
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=_png_info(description))
    elif image_format == "jpeg":
        exif = _exif(description)
        image.save(
            buffer,
            "JPEG",
            quality=quality,
            subsampling="4:4:4",
            exif=exif if len(exif) <= _MAX_JPEG_SEGMENT_BYTES else b"",
        )
    elif image_format == "webp":
        # Method 2 of 0 to 6: at 512x512 46 ms where the default, 4, takes 133 ms; files 2 % larger.
        image.save(buffer, "WEBP", quality=quality, method=2, exif=_exif(description))
    else:
        msg = f"image_format is {image_format!r}; allowed: png, jpeg, webp"
        raise ValueError(msg)
    return EncodedImage(
        data=buffer.getvalue(),
        media_type=f"image/{image_format}",
        width=image.width,
        height=image.height,
    )


def encode_preview(
    pixels: NDArray[np.uint8], *, width: int, height: int, max_side: int
) -> EncodedImage:
    """Encodes a preview as JPEG, as large as the final image or as ``max_side`` allows.

    Args:
        pixels: (any height, any width, 3) uint8, RGB; often one pixel per latent.
        width: The final image's width in pixels.
        height: The final image's height in pixels.
        max_side: Longest side of the preview in pixels; both sides shrink alike.

    Raises:
        ValueError: The pixels are not of that shape and type.
    """
    image = _image_from_pixels(pixels)
    scale = min(1.0, max_side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_PREVIEW_JPEG_QUALITY)
    return EncodedImage(
        data=buffer.getvalue(), media_type="image/jpeg", width=size[0], height=size[1]
    )


def _image_from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:  # noqa: PLR2004
        msg = f"pixels are {pixels.dtype} of shape {pixels.shape}; needed: uint8 (height, width, 3)"
        raise ValueError(msg)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png_info(description: str | None) -> PngInfo | None:
    if description is None:
        return None
    info = PngInfo()
    info.add_itxt(PNG_DESCRIPTION_KEY, description)
    return info


def _exif(description: str | None) -> bytes:
    if description is None:
        return b""
    code = _USER_COMMENT_ASCII if description.isascii() else _USER_COMMENT_UNDEFINED
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = code + description.encode()
    return exif.tobytes()
