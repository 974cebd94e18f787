"""Encoding image files: pixels and description survive in any language, and the size is right."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from latentwire import read_description
from latentwire_server.imaging.encode import encode_image, encode_preview

FORMATS = ["png", "jpeg", "webp"]
DESCRIPTIONS = {
    "plain": '{"prompt": "a red circle"}',
    "emoji": '{"prompt": "ein Füchschen 🦊 狐狸"}',
    "32 kB": '{"prompt": "' + "a fox in the snow, " * 1684 + '"}',
    "32 kB of three-byte characters": '{"prompt": "' + "狐" * 10_666 + '"}',
    "empty": "",
}


@pytest.fixture
def pixels():
    """An image with an edge and a slope, 48 wide and 32 high."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = (200, 30, 30)
    pixels[..., 2] = np.arange(48) * 5
    return pixels


def decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_file_matches_its_media_type_and_size(pixels, image_format):
    encoded = encode_image(pixels, image_format=image_format, quality=95, description=None)
    assert encoded.media_type == f"image/{image_format}"
    assert (encoded.width, encoded.height) == (48, 32)
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert image.get_format_mimetype() == encoded.media_type
        assert image.size == (48, 32)
    difference = np.abs(decode(encoded.data).astype(int) - pixels)
    assert difference.mean() < (1e-9 if image_format == "png" else 8)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_the_description_can_be_read_back(pixels, image_format, description):
    encoded = encode_image(pixels, image_format=image_format, quality=90, description=description)
    assert read_description(encoded.data) == description


def test_other_programs_find_the_description_too(pixels):
    description = DESCRIPTIONS["emoji"]
    png = encode_image(pixels, image_format="png", quality=90, description=description)
    with Image.open(io.BytesIO(png.data)) as image:
        assert image.text["latentwire"] == description
    jpeg = encode_image(pixels, image_format="jpeg", quality=90, description=description)
    with Image.open(io.BytesIO(jpeg.data)) as image:
        user_comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert user_comment == b"\0" * 8 + description.encode()


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_description_does_not_change_the_image(pixels, image_format):
    plain = encode_image(pixels, image_format=image_format, quality=90, description=None)
    described = encode_image(pixels, image_format=image_format, quality=90, description="x")
    assert np.array_equal(decode(plain.data), decode(described.data))
    assert read_description(plain.data) is None


def test_a_description_that_does_not_fit_into_a_jpeg_is_left_out(pixels):
    description = "x" * 65_536
    jpeg = encode_image(pixels, image_format="jpeg", quality=90, description=description)
    plain = encode_image(pixels, image_format="jpeg", quality=90, description=None)
    assert jpeg.data == plain.data
    for image_format in ("png", "webp"):
        other = encode_image(pixels, image_format=image_format, quality=90, description=description)
        assert read_description(other.data) == description


def test_a_description_is_kept_in_a_jpeg_up_to_its_limit_and_not_beyond(pixels):
    kept = []
    for length in range(65_400, 65_537):
        description = "x" * length
        jpeg = encode_image(pixels, image_format="jpeg", quality=90, description=description)
        read_back = read_description(jpeg.data)
        assert read_back in {description, None}
        kept.append(read_back is not None)
    assert kept == sorted(kept, reverse=True)
    assert (kept[0], kept[-1]) == (True, False)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_same_image_gives_the_same_bytes(pixels, image_format):
    first, second = (
        encode_image(pixels, image_format=image_format, quality=80, description="x").data
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_higher_quality_makes_larger_files(pixels, image_format):
    low, high = (
        len(encode_image(pixels, image_format=image_format, quality=quality, description=None).data)
        for quality in (10, 95)
    )
    assert low < high


def test_pixels_may_have_any_memory_layout(pixels):
    flipped = pixels[::-1, ::-1]
    encoded = encode_image(flipped, image_format="png", quality=90, description=None)
    assert np.array_equal(decode(encoded.data), flipped)


@pytest.mark.parametrize(
    ("size", "max_side", "wanted"),
    [
        ((512, 512), 512, (512, 512)),
        ((512, 512), 2048, (512, 512)),
        ((1024, 512), 256, (256, 128)),
        ((512, 1024), 256, (128, 256)),
        ((2048, 64), 64, (64, 2)),
        ((2048, 8), 64, (64, 1)),
    ],
)
def test_previews_keep_the_aspect_ratio_of_the_image(pixels, size, max_side, wanted):
    preview = encode_preview(pixels, width=size[0], height=size[1], max_side=max_side)
    assert (preview.width, preview.height) == wanted
    assert preview.media_type == "image/jpeg"
    with Image.open(io.BytesIO(preview.data)) as image:
        assert image.size == wanted
        assert image.format == "JPEG"


def test_a_preview_from_latents_looks_like_the_image():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:, 2:] = (250, 250, 250)
    preview = decode(encode_preview(pixels, width=64, height=64, max_side=64).data)
    assert preview[:, :16].mean() < 20
    assert preview[:, 48:].mean() > 230


def test_an_unknown_format_is_refused(pixels):
    with pytest.raises(ValueError, match="allowed: png, jpeg, webp"):
        encode_image(pixels, image_format="gif", quality=90, description=None)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_arrays_of_other_types_are_refused(wrong):
    with pytest.raises(ValueError, match="needed: uint8"):
        encode_preview(wrong, width=8, height=8, max_side=8)
