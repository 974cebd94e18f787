"""Callers' image files, well-formed and hostile."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from latentwire_server.imaging.decode import (
    MAX_INPUT_PIXELS,
    UnusableImageError,
    decode_image,
    fitted_size,
    mask_of,
    pixels_of,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
LIMITS = {"multiple": 8, "min_side": 64, "max_side": 512, "max_pixels": 512 * 512}


def file_of(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def half_red_half_blue(width: int = 40, height: int = 20) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def refused(data: bytes) -> str:
    with pytest.raises(UnusableImageError) as caught:
        decode_image(data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"lossless": True})],
)
def test_the_bytes_decide_the_format(file_format: str, options: dict[str, object]) -> None:
    pixels = pixels_of(
        decode_image(file_of(half_red_half_blue(), file_format, **options)), width=40, height=20
    )
    assert np.abs(pixels[10, 5].astype(int) - RED).max() <= 3
    assert np.abs(pixels[10, 35].astype(int) - BLUE).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(file_of(half_red_half_blue(), "JPEG", exif=exif))
    assert image.size == ((40, 20) if orientation <= 4 else (20, 40))
    # The position of the red half, which is the left one of the stored image.
    red = {1: (5, 10), 2: (35, 10), 3: (35, 10), 4: (5, 10)} | {
        5: (10, 5), 6: (10, 5), 7: (10, 35), 8: (10, 35)
    }  # fmt: skip
    assert image.getpixel(red[orientation])[0] > 200


def tags(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)


ORIENTATION_6 = struct.pack("<HHII", 0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        # Bits per sample as text: Pillow reads it and cannot write it again.
        (tags(ORIENTATION_6, struct.pack("<HHI4s", 0x0102, 2, 4, b"abc\xff")), (20, 40)),
        (tags(ORIENTATION_6, struct.pack("<HHII", 0x9286, 9, 2**24, 2**31 - 1)), (20, 40)),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", (40, 20)),
        (b"Exif\0\0garbage", (40, 20)),
    ],
)
def test_malformed_exif_tags_do_not_prevent_decoding(exif: bytes, size: tuple[int, int]) -> None:
    image = decode_image(file_of(half_red_half_blue(), "JPEG", exif=exif))
    assert image.size == size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    if mode == "P":
        stored = Image.new("P", (16, 16), 0)
        data = file_of(stored, transparency=0)
    else:
        data = file_of(image.convert(mode))
    assert (pixels_of(decode_image(data), width=16, height=16) == 255).all()


def test_16_bit_grey_keeps_its_brightness() -> None:
    grey = np.full((8, 8), 0x8000, np.uint16)
    pixels = pixels_of(decode_image(file_of(Image.fromarray(grey))), width=8, height=8)
    assert (pixels == 128).all()


def test_cmyk_is_converted() -> None:
    data = file_of(half_red_half_blue().convert("CMYK"), "JPEG")
    pixels = pixels_of(decode_image(data), width=40, height=20).astype(int)
    assert np.abs(pixels[10, 5] - RED).max() < 20
    assert np.abs(pixels[10, 35] - BLUE).max() < 20


def test_an_image_is_scaled_to_cover_the_size_and_cropped_evenly() -> None:
    image = Image.new("RGB", (300, 100), WHITE)
    image.paste(RED, (100, 0, 200, 100))
    assert np.abs(pixels_of(image, width=50, height=50).astype(int) - RED).max() < 20


def test_a_mask_has_a_hard_edge_and_may_be_inverted() -> None:
    grey = Image.fromarray(np.array([[0, 100, 127, 128, 200, 255]], np.uint8))
    mask = mask_of(grey, width=6, height=1, is_inverted=False)
    assert mask.tolist() == [[0, 0, 0, 255, 255, 255]]
    assert (mask_of(grey, width=6, height=1, is_inverted=True) == 255 - mask).all()


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((256, 128), (None, None), (256, 128)),
        ((250, 131), (None, None), (248, 128)),
        ((4000, 2000), (None, None), (512, 256)),
        ((20, 40), (None, None), (64, 128)),
        ((4000, 100), (None, None), (512, 64)),
        ((256, 128), (128, None), (128, 64)),
        ((256, 128), (None, 256), (512, 256)),
        ((256, 128), (64, 320), (64, 320)),
        ((1, 4000), (None, None), (64, 512)),
    ],
)
def test_the_size_follows_the_image_within_the_limits(
    size: tuple[int, int], given: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    image = Image.new("L", size)
    assert fitted_size(image, width=given[0], height=given[1], **LIMITS) == expected


def test_the_area_is_a_limit_too() -> None:
    limits = LIMITS | {"max_pixels": 256 * 256, "max_side": 2048}
    width, height = fitted_size(Image.new("L", (1000, 500)), width=None, height=None, **limits)
    assert width * height <= 256 * 256
    assert (width, height) == (352, 184)


def test_a_file_that_is_no_image_is_refused() -> None:
    assert refused(b"") == "REQUIRED"
    assert refused(b"hello") == "UNKNOWN_FORMAT"
    assert refused(file_of(half_red_half_blue(), "GIF")) == "UNKNOWN_FORMAT"
    assert refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "UNKNOWN_FORMAT"


def test_a_truncated_file_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for file_format in ("PNG", "JPEG", "WEBP"):
        data = file_of(Image.fromarray(noise), file_format)
        assert refused(data[: len(data) // 2]) in {"BROKEN", "UNKNOWN_FORMAT"}


def test_animations_are_refused() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert refused(data) == "ANIMATED"
    assert refused(file_of(frames[0], save_all=True, append_images=frames[1:])) == "ANIMATED"


def test_an_mpo_file_is_read_as_its_first_image() -> None:
    image = half_red_half_blue()
    data = file_of(image, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode_image(data).size == image.size


def test_a_jpeg_with_too_many_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = file_of(half_red_half_blue(), "JPEG", progressive=True)
    last_scan = good[good.rindex(b"\xff\xda") : -2]
    assert decode_image(good[:-2] + 20 * last_scan + good[-2:]).size == (40, 20)
    # Data after the image, such as a phone's video, does not count, nor do thumbnails.
    assert decode_image(good + 200 * last_scan).size == (40, 20)
    thumbnail = b"\xff\xed" + struct.pack(">H", 2 + 400) + 200 * b"\xff\xda"
    assert decode_image(good[:2] + thumbnail + good[2:]).size == (40, 20)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    for bomb in (200 * last_scan, 200 * (b"\xff\x01" + last_scan), 200 * (b"\xff" + last_scan)):
        assert refused(good[:-2] + bomb + good[-2:]) == "TOO_LARGE"


def test_a_decompression_bomb_is_refused_by_its_header_alone() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    for side in (4097, 60_000, 2**31 - 1):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        assert refused(bomb) == "TOO_LARGE", side
    assert MAX_INPUT_PIXELS == 4096 * 4096


def test_any_bytes_are_an_image_or_refused() -> None:
    rng = np.random.default_rng(0)
    good = [file_of(half_red_half_blue(), name) for name in ("PNG", "JPEG", "WEBP")]
    for _ in range(300):
        data = bytearray(good[rng.integers(3)])
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        try:
            image = decode_image(bytes(data))
        except UnusableImageError:
            continue
        assert pixels_of(image, width=16, height=16).shape == (16, 16, 3)
