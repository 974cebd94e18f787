"""Generation that starts from an image, over a real channel."""

from __future__ import annotations

import gc
import hashlib
import io
import re

import grpc
import numpy as np
import pytest
from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.engine.request import Source
from latentwire_server.requests.draft import SourceDraft
from latentwire_server.requests.source_images import open_source
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import (
    Serving,
    error_details,
    events_of,
    images_of,
    kind,
    request,
    serving,
)
from tests.support.server.source_images import file_of, from_image, two_coloured


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def in_mask(mask: Image.Image, **fields: object) -> pb.GenerateImageRequest:
    options = {name: fields.pop(name) for name in ("strength", "mask_inverted") if name in fields}
    part = pb.Inpainting(
        image=pb.InputImage(data=file_of(two_coloured(*mask.size))),
        mask=pb.InputImage(data=file_of(mask)),
        **options,
    )
    return request(inpainting=part, **fields)


def right_half(width: int = 64, height: int = 64) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


async def violations_of(server: Serving, sent: pb.GenerateImageRequest) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events_of(server.stub.GenerateImage(sent))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.model.calls == []
    assert server.model.num_encoded_images == 0
    return error_details(caught.value).reasons


async def test_low_strength_leaves_the_image_nearly_unchanged(server: Serving):
    original = np.asarray(two_coloured()).astype(int)
    differences = []
    for strength in (0.25, 0.5, 1.0):
        sent = from_image(strength=strength, num_inference_steps=8, seed=1)
        (image,) = images_of(await events_of(server.stub.GenerateImage(sent)))
        differences.append(np.abs(pixels(image) - original).mean())
    assert differences == sorted(differences)
    assert differences[0] < 0.6 * differences[-1]


@pytest.mark.parametrize(
    ("strength", "num_inference_steps", "taken"), [(0.7, 10, 7), (0.8, 25, 20), (1.0, 5, 5)]
)
async def test_strength_is_the_share_of_the_steps_that_are_taken(
    server: Serving, strength: float, num_inference_steps: int, taken: int
):
    sent = from_image(strength=strength, num_inference_steps=num_inference_steps)
    responses = await events_of(server.stub.GenerateImage(sent))
    steps = [one.progress for one in responses if kind(one) == "progress"]
    assert {step.step_count for step in steps} == {taken}
    assert steps[-1].step == taken
    assert len(server.model.calls) == taken
    effective = responses[0].accepted.effective_request
    assert effective.num_inference_steps == num_inference_steps
    assert effective.image_to_image.strength == pytest.approx(strength)


async def test_the_effective_request_identifies_files_by_digest(server: Serving):
    sent = in_mask(right_half(), mask_inverted=True)
    accepted = (await events_of(server.stub.GenerateImage(sent)))[0].accepted
    part = accepted.effective_request.inpainting
    assert part.image.data == b""
    assert part.image.sha256 == hashlib.sha256(sent.inpainting.image.data).digest()
    assert part.mask.sha256 == hashlib.sha256(sent.inpainting.mask.data).digest()
    assert (part.mask_inverted, part.strength) == (True, 1.0)


@pytest.mark.parametrize("is_inverted", [False, True])
async def test_pixels_outside_the_mask_come_back_unchanged(server: Serving, is_inverted: bool):
    sent = in_mask(right_half(), mask_inverted=is_inverted, num_images=2, guidance_scale=1.0)
    images = images_of(await events_of(server.stub.GenerateImage(sent)))
    assert len(images) == 2
    kept, masked = (slice(0, 32), slice(32, 64))[:: -1 if is_inverted else 1]
    original = np.asarray(two_coloured()).astype(int)
    for data in images:
        generated = pixels(data)
        assert (generated[:, kept] == original[:, kept]).all()
        assert np.abs(generated[:, masked] - original[:, masked]).mean() > 20


async def test_the_mask_edge_is_soft_on_the_inside_unless_disabled():
    edges = {}
    for feather in (0, 8):
        async with serving(mask_feather=feather) as server:
            sent = in_mask(right_half(), guidance_scale=1.0, seed=3)
            (image,) = images_of(await events_of(server.stub.GenerateImage(sent)))
            edges[feather] = np.abs(pixels(image) - np.asarray(two_coloured()))[:, 32].mean()
    assert edges[8] < edges[0] / 4


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((128, 96), {}, (128, 96)),
        ((131, 90), {}, (128, 88)),
        ((128, 96), {"width": 64}, (64, 64)),
        ((128, 96), {"width": 64, "height": 128}, (64, 128)),
        ((9, 9), {}, (64, 64)),
    ],
)
async def test_the_size_follows_the_source_image_unless_given(
    server: Serving, size: tuple[int, int], given: dict[str, int], expected: tuple[int, int]
):
    sent = from_image(two_coloured(*size), **given)
    (image,) = images_of(await events_of(server.stub.GenerateImage(sent)))
    assert Image.open(io.BytesIO(image)).size == expected


async def test_all_violations_are_reported_at_once(server: Serving):
    broken = request(
        inpainting=pb.Inpainting(
            image=pb.InputImage(data=b"GIF89a"), mask=pb.InputImage(), strength=1.5
        ),
        num_images=99,
    )
    assert await violations_of(server, broken) == {
        "num_images": "OUT_OF_RANGE",
        "inpainting.image": "UNKNOWN_FORMAT",
        "inpainting.mask": "REQUIRED",
        "inpainting.strength": "OUT_OF_RANGE",
    }


async def test_image_to_image_needs_no_prompt(server: Serving):
    sent = from_image(prompt="", strength=0.5)
    assert len(images_of(await events_of(server.stub.GenerateImage(sent)))) == 1


async def test_a_mask_of_another_size_is_refused(server: Serving):
    sent = in_mask(right_half())
    sent.inpainting.image.data = file_of(two_coloured(128, 64))
    assert await violations_of(server, sent) == {"inpainting.mask": "SIZE_DIFFERS"}


async def test_a_mask_that_selects_nothing_is_refused(server: Serving):
    sent = in_mask(Image.new("L", (64, 64), 255), mask_inverted=True)
    assert await violations_of(server, sent) == {"inpainting.mask": "NOTHING_TO_DRAW"}


@pytest.mark.parametrize(
    ("box", "size"),
    [
        # A latent follows the first of its 8x8 pixels.
        ((9, 9, 16, 16), {}),
        ((0, 1, 64, 8), {}),
        # All of it is cropped from the wide image.
        ((0, 0, 10, 64), {"width": 64, "height": 128}),
    ],
)
async def test_a_mask_that_does_not_reach_the_latents_is_refused(
    server: Serving, box: tuple[int, int, int, int], size: dict[str, int]
):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, box)
    assert await violations_of(server, in_mask(mask, **size)) == {
        "inpainting.mask": "NOTHING_TO_DRAW"
    }


async def test_the_area_of_a_small_mask_is_regenerated(server: Serving):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (40, 40, 48, 48))
    (image,) = images_of(await events_of(server.stub.GenerateImage(in_mask(mask))))
    changed = np.abs(pixels(image) - np.asarray(two_coloured()).astype(int)).max(-1)
    assert changed[44, 44] > 20
    assert not changed[np.asarray(mask) == 0].any()


def test_the_suggested_minimum_strength_is_accepted():
    info, data = FakeModel().info, file_of(two_coloured())

    def descriptions(strength: float, num_inference_steps: int) -> list[str]:
        draft = SourceDraft(kind="image_to_image", image=data, strength=strength)
        opened = open_source(draft, info, num_steps=num_inference_steps)
        return [violation.description for violation in opened.violations]

    for num_inference_steps in range(2, 200):
        (description,) = descriptions(0.0001, num_inference_steps)
        named = re.search(r"allowed: ([\d.]+) and more", description)
        assert named is not None
        assert descriptions(float(named[1]), num_inference_steps) == []


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.01, float("nan"), float("inf")])
async def test_a_strength_out_of_range_is_refused(server: Serving, strength: float):
    reasons = await violations_of(server, from_image(strength=strength))
    assert reasons == {"image_to_image.strength": "OUT_OF_RANGE"}


async def test_a_strength_that_leaves_no_step_is_refused(server: Serving):
    reasons = await violations_of(server, from_image(strength=0.1, num_inference_steps=9))
    assert reasons == {"image_to_image.strength": "NO_STEP_LEFT"}


async def test_an_image_too_large_to_decode_is_refused(server: Serving):
    sent = from_image(Image.new("1", (4097, 4096)))
    assert await violations_of(server, sent) == {"image_to_image.image": "TOO_LARGE"}


async def test_source_images_are_released_after_the_generation(server: Serving):
    sent = in_mask(right_half(1024, 1024), width=1024, height=1024, guidance_scale=1.0)
    responses = await events_of(server.stub.GenerateImage(sent))
    name = responses[0].generation

    def held() -> int:
        gc.collect()
        # By exact type: isinstance() makes some of torch's objects warn.
        return sum(one.pixels.nbytes for one in gc.get_objects() if type(one) is Source)

    await eventually(lambda: held() == 0)
    asked = await server.stub.GetGeneration(pb.GetGenerationRequest(name=name))
    assert asked.generation.name == name


async def test_equal_prompts_with_different_source_images_give_different_images():
    async with serving(FakeModel()) as server:
        server.model.hold()
        sent = [
            from_image(Image.new("RGB", (64, 64), colour), seed=1, strength=0.5)
            for colour in ("red", "green")
        ]
        calls = [server.stub.GenerateImage(one) for one in sent]
        server.model.let_go()
        first, second = [images_of(await events_of(call)) for call in calls]
        assert np.abs(pixels(first[0]) - pixels(second[0])).mean() > 5
