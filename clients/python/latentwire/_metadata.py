"""Reads the request back from an image file that Latentwire wrote. No I/O; needs no Pillow.

The file is untrusted input: no read goes beyond its end, and malformed metadata counts as none.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD: Final = b"latentwire"
_JPEG_START: Final = b"\xff\xd8"
_JPEG_APP1: Final = 0xE1
_JPEG_START_OF_SCAN: Final = 0xDA
_EXIF_HEADER: Final = b"Exif\0\0"
_EXIF_IFD_TAG: Final = 0x8769
_USER_COMMENT_TAG: Final = 0x9286
_USER_COMMENT_CODE_BYTES: Final = 8
_MAX_TEXT_BYTES: Final = 1 << 20


def read_description(data: bytes) -> str | None:
    """Returns the description that the server wrote into an image file, as JSON text.

    Its key ``request`` holds the request.

    Args:
        data: The bytes of a PNG, JPEG or WebP file.

    Returns:
        None if the file has no description, as with ``metadata_omitted``, or another format.
    """
    try:
        if data.startswith(_PNG_SIGNATURE):
            return _png_description(data)
        if data.startswith(_JPEG_START):
            return _exif_description(_jpeg_exif(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _exif_description(_webp_exif(data))
    except (struct.error, zlib.error, UnicodeDecodeError, IndexError):
        return None
    return None


def _png_description(data: bytes) -> str | None:
    for kind, body in _png_chunks(data):
        keyword, _, rest = body.partition(b"\0")
        if keyword != _PNG_KEYWORD:
            continue
        if kind == b"tEXt":
            return rest.decode("latin-1")
        if kind == b"iTXt":
            is_compressed = rest[0] == 1
            _language, _, rest = rest[2:].partition(b"\0")
            _translated_keyword, _, text = rest.partition(b"\0")
            if is_compressed:
                text = zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES)
            return text.decode()
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        position += 12 + length


def _jpeg_exif(data: bytes) -> bytes:
    position = len(_JPEG_START)
    while position + 4 <= len(data):
        marker, kind, length = struct.unpack_from(">BBH", data, position)
        if marker != 0xFF or kind == _JPEG_START_OF_SCAN or length < 2:  # noqa: PLR2004
            break
        segment = data[position + 4 : position + 2 + length]
        if kind == _JPEG_APP1 and segment.startswith(_EXIF_HEADER):
            return segment.removeprefix(_EXIF_HEADER)
        position += 2 + length
    return b""


def _webp_exif(data: bytes) -> bytes:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return data[position + 8 : position + 8 + length].removeprefix(_EXIF_HEADER)
        position += 8 + length + length % 2
    return b""


def _exif_description(exif: bytes) -> str | None:
    """Reads the UserComment tag from a TIFF structure, by way of IFD 0 and the Exif IFD."""
    if exif[:2] not in {b"II", b"MM"}:
        return None
    order = "<" if exif[:2] == b"II" else ">"
    (first_ifd,) = struct.unpack_from(f"{order}I", exif, 4)
    exif_ifd = _tag_value(exif, order, ifd=first_ifd, tag=_EXIF_IFD_TAG)
    if exif_ifd is None:
        return None
    comment = _tag_value(exif, order, ifd=exif_ifd[1], tag=_USER_COMMENT_TAG)
    if comment is None:
        return None
    count, offset = comment
    return exif[offset + _USER_COMMENT_CODE_BYTES : offset + count].decode()


def _tag_value(exif: bytes, order: str, *, ifd: int, tag: int) -> tuple[int, int] | None:
    """Returns a tag's count, and its value or offset."""
    (num_entries,) = struct.unpack_from(f"{order}H", exif, ifd)
    for entry in range(num_entries):
        found, _kind, count, value = struct.unpack_from(f"{order}HHII", exif, ifd + 2 + 12 * entry)
        if found == tag:
            return count, value
    return None
