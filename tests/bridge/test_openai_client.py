"""The newest ``openai`` client, as its users write it."""

from __future__ import annotations

import asyncio
import base64
import io

import openai
import pytest
from PIL import Image


@pytest.fixture
async def client(bridge):
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="random-string") as client:
        yield client


def size_of(b64_json: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(b64_json))).size


async def test_an_image_is_generated(client):
    response = await client.images.generate(
        model="gpt-image-1",
        prompt="a red circle",
        n=2,
        size="512x512",
        quality="high",
        background="auto",
        moderation="low",
        output_format="png",
        output_compression=100,
        user="me",
    )

    assert len(response.data) == 2
    assert [size_of(image.b64_json) for image in response.data] == [(512, 512)] * 2
    assert response.size == "512x512"
    assert response.output_format == "png"
    assert response.data[0].url.startswith("http://127.0.0.1:")
    assert response._request_id.startswith("req_")


async def test_extension_fields_go_through_extra_body(client):
    extra = {"seed": 0, "num_inference_steps": 2, "guidance_scale": 1.5, "scheduler": "euler-a"}

    first = await client.images.generate(prompt="a red circle", extra_body=extra)
    second = await client.images.generate(prompt="a red circle", extra_body=extra)

    assert first.data[0].b64_json == second.data[0].b64_json
    assert first.data[0].seed == 0


async def test_the_blocking_client_works_too(bridge):
    def generate() -> openai.types.ImagesResponse:
        with openai.OpenAI(base_url=f"{bridge.url}/v1", api_key="random-string") as client:
            return client.images.generate(model="dall-e-3", prompt="a", style="vivid", quality="hd")

    response = await asyncio.to_thread(generate)

    assert size_of(response.data[0].b64_json) == (64, 64)


async def test_a_base_url_without_version_works_too(bridge):
    async with openai.AsyncOpenAI(base_url=bridge.url, api_key="random-string") as client:
        response = await client.images.generate(prompt="a", response_format="url")

    assert response.data[0].b64_json is None
    assert response.data[0].url


async def test_models_are_listed_and_found(client):
    models = [model.id async for model in await client.models.list()]

    assert models[:2] == ["fake", "fake-alias"]
    assert {"dall-e-2", "dall-e-3", "gpt-image-1", "chatgpt-image-latest"} <= set(models)
    assert (await client.models.retrieve("dall-e-3")).id == "dall-e-3"
    assert (await client.models.retrieve("models/fake")).id == "fake"
    assert (await client.models.retrieve("fake")).owned_by == "latentwire"
    shown = (await client.models.retrieve("dall-e-3")).to_dict()
    assert shown["state"] == "ready"
    assert shown["capabilities"][:2] == ["text-to-image", "image-to-image"]
    assert shown["limits"]["max_side"] == 1024
    assert shown["defaults"]["scheduler"] == {"id": "euler", "sigmas": "default"}
    assert shown["schedulers"][0] == {"id": "euler", "sigmas": ["default", "karras"]}
    for unknown in ("gpt-4", "org/model"):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve(unknown)
        assert raised.value.code == "model_not_found"


async def test_a_picture_that_is_none_is_refused_by_the_parameters_name(client):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.images.edit(prompt="a", image=b"\x89PNG")
    assert raised.value.param == "image"

    with (
        pytest.raises(openai.BadRequestError) as raised,
        pytest.warns(DeprecationWarning, match="variation|deprecated"),
    ):
        await client.images.create_variation(image=b"\x89PNG")
    assert raised.value.param == "image"


async def test_an_edit_of_megabytes_hears_the_refusal(client):
    with pytest.raises(openai.BadRequestError):
        await client.images.edit(prompt="a", image=b"\x89PNG" + bytes(5_000_000))


async def test_a_bad_value_names_its_parameter(client):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.images.generate(prompt="a", size="1x1")

    assert raised.value.param == "size"
    assert "allowed: 64 to 1024" in raised.value.message
