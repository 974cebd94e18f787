"""Descriptions read from foreign, damaged and hostile files."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentwire import read_description
from latentwire_server.imaging.encode import encode_image

PIXELS = np.zeros((8, 8, 3), np.uint8)
FILES = [
    encode_image(PIXELS, image_format=image_format, quality=90, description="hello").data
    for image_format in ("png", "jpeg", "webp")
]


def save(image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_file_without_a_description_has_none(image_format):
    assert read_description(save(image_format)) is None


def test_text_of_other_programs_is_ignored():
    info = PngInfo()
    info.add_text("parameters", "a fox")
    assert read_description(save("PNG", pnginfo=info)) is None


@pytest.mark.parametrize("is_compressed", [False, True])
def test_other_forms_of_png_text_are_read_too(is_compressed):
    info = PngInfo()
    info.add_itxt("latentwire", "füchse 🦊", zip=is_compressed)
    assert read_description(save("PNG", pnginfo=info)) == "füchse 🦊"
    info = PngInfo()
    info.add_text("latentwire", "plain")
    assert read_description(save("PNG", pnginfo=info)) == "plain"


def test_exif_of_both_byte_orders_is_read():
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0hello"
    assert read_description(save("JPEG", exif=exif.tobytes())) == "hello"


def test_the_decompressed_size_of_a_description_is_limited():
    body = b"latentwire\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000)
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + bytes(4)
    text = read_description(FILES[0][:33] + chunk)
    assert text is not None
    assert len(text) <= 1 << 20


@pytest.mark.parametrize("data", FILES, ids=["png", "jpeg", "webp"])
def test_every_truncation_is_survived(data):
    for length in range(len(data)):
        assert read_description(data[:length]) in {None, "", "h", "he", "hel", "hell", "hello"}


@given(st.sampled_from(FILES), st.data())
def test_damaged_files_are_survived(file, draw):
    damaged = bytearray(file)
    for _ in range(draw.draw(st.integers(1, 8))):
        damaged[draw.draw(st.integers(0, len(file) - 1))] = draw.draw(st.integers(0, 255))
    result = read_description(bytes(damaged))
    assert result is None or isinstance(result, str)


@given(st.binary(max_size=200), st.sampled_from([data[:30] for data in FILES]))
def test_random_bytes_are_survived(tail, head):
    result = read_description(head + tail)
    assert result is None or isinstance(result, str)
