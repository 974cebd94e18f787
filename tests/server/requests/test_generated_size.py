"""Small sizes with a model that generates them larger."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.fakes import expected_pixels
from tests.support.server.large_model import LargeModel
from tests.support.server.serving import Serving, events_of, images_of, kind, request, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SMALL = {"width": 64, "height": 64, "guidance_scale": 1, "seed": 3}


@pytest.fixture
async def server() -> AsyncIterator[Serving]:
    async with serving(LargeModel()) as running:
        yield running


async def generate(
    server: Serving, sent: pb.GenerateImageRequest
) -> list[pb.GenerateImageResponse]:
    return await events_of(server.stub.GenerateImage(sent))


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def file_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


async def test_a_small_image_is_a_large_one_scaled_down(server: Serving):
    responses = await generate(server, request("a", **SMALL))
    (file,) = images_of(responses)
    large = expected_pixels("a", seed=3, width=128, height=128)
    small = Image.fromarray(large).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.abs(pixels_of(file).astype(int) - np.asarray(small).astype(int)).max() <= 2
    (image,) = [one.image for one in responses if kind(one) == "image"]
    assert (image.width, image.height) == pixels_of(file).shape[:2] == (64, 64)

    (warning,) = responses[0].accepted.warnings
    assert warning.reason == "DRAWN_LARGER"
    assert "128x128" in warning.message
    assert "64x64" in warning.message


async def test_the_effective_request_generates_the_same_bytes(server: Serving):
    first = await generate(server, request("a", **SMALL))
    effective = first[0].accepted.effective_request
    assert (effective.width, effective.height) == (64, 64)
    second = await generate(server, effective)
    assert second[0].accepted.effective_request == effective
    assert images_of(second) == images_of(first)


async def test_previews_have_the_delivered_size(server: Serving):
    sent = request("a", **SMALL, events=pb.Events(preview_interval_steps=1))
    previews = [one.preview for one in await generate(server, sent) if kind(one) == "preview"]
    assert {(one.width, one.height) for one in previews} == {(64, 64)}


async def test_pixels_outside_the_mask_come_back_unchanged(server: Serving):
    original = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros_like(original)
    mask[:, 32:] = 255
    inpainting = pb.Inpainting(
        image=pb.InputImage(data=file_of(original)), mask=pb.InputImage(data=file_of(mask))
    )
    (file,) = images_of(await generate(server, request("a", **SMALL, inpainting=inpainting)))
    assert (pixels_of(file)[:, :32] == original[:, :32]).all()
    assert (pixels_of(file)[:, 40:] != original[:, 40:]).any()


async def test_image_to_image_is_generated_larger_too(server: Serving):
    grey = np.full((64, 64, 3), 128, np.uint8)
    source = pb.ImageToImage(image=pb.InputImage(data=file_of(grey)), strength=0.5)
    responses = await generate(
        server, request("a", guidance_scale=1, seed=3, image_to_image=source)
    )
    assert [one.reason for one in responses[0].accepted.warnings] == ["DRAWN_LARGER"]
    assert pixels_of(images_of(responses)[0]).shape == (64, 64, 3)


async def test_large_images_keep_their_size_and_the_model_lists_the_limit(server: Serving):
    responses = await generate(server, request("a", width=128, height=128, seed=1))
    assert list(responses[0].accepted.warnings) == []
    model = (await server.stub.GetModel(pb.GetModelRequest())).model
    assert model.limits.min_drawn_pixels == 96 * 96
