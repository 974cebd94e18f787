"""Edits and variations over HTTP, drawn by the real server round a FakeModel."""

from __future__ import annotations

import base64
import io
import struct

import aiohttp
import numpy as np
import openai
import pytest
from PIL import Image

from tests.support.bridge.bridging import bridging
from tests.support.fakes import FakeModel
from tests.support.server.serving import serving

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
RED = (200, 40, 40)


def file_of(image: Image.Image, file_format: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, file_format)
    return out.getvalue()


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def half_transparent(colour: tuple[int, int, int] = RED) -> Image.Image:
    """OpenAI's mask: what is transparent, the right half, is to be edited."""
    image = Image.new("RGBA", (64, 64), (*colour, 255))
    image.paste((*colour, 0), (32, 0, 64, 64))
    return image


def turned_back(image: Image.Image) -> bytes:
    """A file that is upright by its EXIF orientation, beside a tag that no number should be."""
    tags = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x0102, 2, 4, b"abc\xff")
    out = io.BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags
    image.transpose(Image.Transpose.ROTATE_90).save(out, "PNG", exif=exif)
    return out.getvalue()


def half_white() -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    return mask


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def form(**parts: object) -> aiohttp.FormData:
    """Files as OpenAI's client sends them: any name, any type."""
    data = aiohttp.FormData(default_to_multipart=True)
    for name, part in parts.items():
        if isinstance(part, bytes):
            data.add_field(name, part, filename="upload", content_type="application/octet-stream")
        else:
            data.add_field(name, str(part))
    return data


async def edit(bridge, path: str = EDITS, **parts: object):
    return await bridge.send("POST", path, data=form(**parts))


def pixels(answer, index: int = 0) -> np.ndarray:
    assert answer.status == 200, answer.data
    data = base64.b64decode(answer.json["data"][index]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


async def test_an_edit_starts_from_the_picture(bridge):
    options = {"prompt": "a blue square", "seed": 3, "num_inference_steps": 8}
    little = await edit(bridge, image=file_of(picture()), strength=0.25, **options)
    much = await edit(bridge, image=file_of(picture()), strength="1.0", **options)
    assert np.abs(pixels(little) - RED).mean() < 0.6 * np.abs(pixels(much) - RED).mean()
    assert little.json["size"] == "64x64"
    assert little.json["data"][0]["seed"] == 3


@pytest.mark.parametrize(
    "parts",
    [
        {"image": file_of(picture()), "mask": file_of(half_transparent((0, 0, 0)))},
        {"image": file_of(picture()), "mask": turned_back(half_transparent())},
        {"image[]": file_of(picture()), "mask": file_of(half_white())},
        {"image": file_of(picture()), "mask_image": file_of(half_white())},
        {"image": file_of(half_transparent())},
    ],
    ids=["alpha", "alpha by its tags", "white", "mask_image", "of the image itself"],
)
async def test_only_what_the_mask_names_is_redrawn(bridge, parts):
    drawn = pixels(await edit(bridge, prompt="a blue square", n=2, **parts), index=1)
    assert (drawn[:, :32] == RED).all()
    assert np.abs(drawn[:, 40:] - RED).mean() > 20


async def test_a_photo_of_another_format_and_size_is_drawn_at_its_own_size(bridge):
    answer = await edit(bridge, image=file_of(picture(130, 90), "JPEG"), prompt="x")
    assert answer.json["size"] == "128x88"
    answer = await edit(bridge, image=file_of(picture(130, 90), "WEBP"), prompt="x", size="64x128")
    assert answer.json["size"] == "64x128"
    answer = await edit(bridge, image=file_of(picture(130, 90)), prompt="x", size="auto")
    assert answer.json["size"] == "128x88"


@pytest.mark.parametrize("wrapped", [True, False])
async def test_json_brings_its_pictures_as_data_urls(bridge, wrapped):
    def reference(data: bytes) -> object:
        return {"image_url": data_url(data)} if wrapped else data_url(data)

    body = {
        "prompt": "a blue square",
        "images": [reference(file_of(picture()))],
        "mask": reference(file_of(half_transparent((0, 0, 0)))),
        "input_fidelity": "high",
        "strength": None,
    }
    drawn = pixels(await bridge.send("POST", EDITS, json=body))
    assert (drawn[:, :32] == RED).all()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"image_url": "https://example.com/a.png"}, "does not fetch URLs"),
        ({"image_url": "file:///etc/passwd"}, "does not fetch URLs"),
        ({"file_id": "file-abc"}, "keeps no files"),
        ({"image_url": "data:image/png;base64,@@@"}, "not a base64 data: URL"),
        ({"image_url": "data:image/png,abc"}, "not a base64 data: URL"),
        ({}, "should be"),
        (7, "should be"),
    ],
    ids=str,
)
async def test_pictures_from_elsewhere_are_refused_with_the_reason(bridge, reference, said):
    answer = await bridge.send("POST", EDITS, json={"prompt": "x", "images": [reference]})
    assert answer.status == 400
    assert said in answer.error["message"]
    assert answer.error["param"] == "images"


async def test_several_pictures_are_more_than_the_model_takes(bridge, server):
    data = aiohttp.FormData({"prompt": "x"})
    for _ in range(2):
        data.add_field("image[]", file_of(picture()), filename="a.png")
    answer = await bridge.send("POST", EDITS, data=data)
    assert (answer.status, answer.error["param"]) == (400, "image")
    assert "1 image; got 2" in answer.error["message"]
    assert server.model.calls == []


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ({"prompt": "x"}, "image", "missing_required_parameter"),
        ({"image": file_of(picture()), "prompt": "x", "strength": 2}, "strength", "invalid_value"),
        ({"image": file_of(picture()), "prompt": "x", "strength": 0.01}, "strength", None),
        ({"image": b"no picture", "prompt": "x"}, "image", "invalid_value"),
        ({"image": file_of(picture()), "mask": b"none", "prompt": "x"}, "mask", "invalid_value"),
        (
            {"image": file_of(picture(128)), "mask": file_of(half_white()), "prompt": "x"},
            "mask",
            "invalid_value",
        ),
        ({"image": file_of(picture()), "prompt": "x", "size": "63x64"}, "size", "invalid_value"),
        ({"image": file_of(picture()), "prompt": "x", "stream": "maybe"}, "stream", None),
    ],
)
async def test_what_is_wrong_is_told_by_its_name(bridge, server, parts, param, code):
    answer = await edit(bridge, **parts)
    assert answer.status == 400, answer.data
    assert answer.error["param"] == param
    assert code in (None, answer.error["code"])
    assert server.model.calls == []


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
async def test_what_starts_from_a_picture_has_no_high_resolution_fix(path):
    async with (
        serving(FakeModel(high_resolution_fix=0.5)) as server,
        bridging(server.address) as bridge,
    ):
        parts = {"prompt": "a", "size": "128x128", "image": file_of(picture())}
        for asked in ("true", "0.5"):
            answer = await edit(bridge, path, **parts, high_resolution_fix=asked)
            assert (answer.status, answer.error["param"]) == (400, "high_resolution_fix")
            assert "from noise" in answer.error["message"]
        answer = await edit(bridge, path, **parts, high_resolution_fix="False")
        assert answer.status == 200, answer.data


async def test_an_edit_needs_a_prompt_and_a_variation_does_not(bridge):
    answer = await edit(bridge, image=file_of(picture()))
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    answer = await edit(bridge, VARIATIONS, image=file_of(picture()), n=2, size="64x64")
    assert len(answer.json["data"]) == 2


async def test_a_variation_stays_near_its_picture(bridge):
    options = {"seed": 3, "num_inference_steps": 10}
    variation = pixels(await edit(bridge, VARIATIONS, image=file_of(picture()), **options))
    answer = await edit(bridge, image=file_of(picture()), prompt=" ", strength=1, **options)
    assert np.abs(variation - RED).mean() < np.abs(pixels(answer) - RED).mean()


async def test_a_picture_needs_neither_a_name_nor_a_type(bridge):
    boundary = "b0undary"
    head = f"--{boundary}\r\nContent-Disposition: form-data; name=".encode()
    data = b"".join(
        [
            head + b'"image"\r\n\r\n' + file_of(picture()) + b"\r\n",
            head + b'"prompt"\r\n\r\na red circle\r\n',
            f"--{boundary}--\r\n".encode(),
        ]
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = await bridge.send("POST", EDITS, data=data, headers=headers)
    assert answer.status == 200, answer.data


async def test_a_file_that_nobody_has_chosen_is_none(bridge):
    whole = await edit(bridge, image=file_of(picture()), prompt="a", seed=3)
    answer = await edit(bridge, image=file_of(picture()), mask=b"", prompt="a", seed=3)
    assert answer.status == 200
    assert np.array_equal(pixels(answer), pixels(whole))
    assert (await edit(bridge, image=b"", prompt="a")).error["message"] == "'image': is required"


async def test_a_field_that_comes_as_a_file_counts_all_the_same(bridge):
    answer = await edit(bridge, image=file_of(picture()), prompt=b"a red circle", n=b"2")
    assert len(answer.json["data"]) == 2
    refused = await edit(bridge, image=file_of(picture()), prompt=b"a", n=b"many")
    assert (refused.status, refused.error["param"]) == (400, "n")
    refused = await edit(bridge, image=file_of(picture()), prompt=b"\xff\xfe")
    assert (refused.status, refused.error["param"]) == (400, "prompt")


async def test_a_form_has_no_more_than_a_thousand_parts(bridge, server):
    data = form(image=file_of(picture()), prompt="a")
    for _ in range(1_000):
        data.add_field("user", "a")
    answer = await bridge.send("POST", EDITS, data=data)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert server.model.calls == []


async def test_a_variation_takes_no_mask(bridge, server):
    refused = await edit(
        bridge, VARIATIONS, image=file_of(picture()), mask=file_of(half_transparent())
    )
    assert (refused.status, refused.error["param"]) == (400, "mask")
    assert refused.error["code"] == "unsupported_parameter"
    assert server.model.calls == []


async def test_uploads_have_a_limit_of_their_own(server):
    async with bridging(server.address, max_upload_bytes=100_000) as bridge:
        answer = await edit(bridge, image=b"\x89PNG" + bytes(200_000), prompt="x")
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        answer = await edit(bridge, image=file_of(picture()), prompt="x")
        assert answer.status == 200
    async with bridging(server.address, max_body_bytes=2_000) as bridge:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        body = {"prompt": "x", "images": [data_url(file_of(Image.fromarray(noise)))]}
        assert (await bridge.send("POST", EDITS, json=body)).status == 200


@pytest.mark.parametrize(
    "data", [b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--"]
)
async def test_a_broken_form_is_refused(bridge, data):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await bridge.send("POST", EDITS, data=data, headers=headers)
    assert answer.status == 400
    assert answer.error["code"] in {"invalid_body", "missing_required_parameter"}
    headers = {"Content-Type": "multipart/form-data"}
    assert (await bridge.send("POST", EDITS, data=data, headers=headers)).status == 400


async def test_a_form_without_files_is_told_what_to_send(bridge):
    answer = await bridge.send("POST", EDITS, data={"prompt": "x"})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_type")
    assert "multipart/form-data" in answer.error["message"]


async def test_openais_own_client_edits(bridge):
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="any") as client:
        edited = await client.images.edit(
            image=("photo.png", file_of(picture()), "image/png"),
            mask=("mask.png", file_of(half_transparent()), "image/png"),
            prompt="a blue square",
            n=2,
            response_format="b64_json",
            extra_body={
                "num_inference_steps": 4,
                "guidance_scale": 1.5,
                "scheduler": {"id": "euler"},
            },
        )
        assert len(edited.data) == 2
        several = await client.images.edit(image=[file_of(picture())], prompt="a blue square")
        assert several.data[0].b64_json
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(image=[file_of(picture())] * 2, prompt="a blue square")
        assert caught.value.param == "image"
