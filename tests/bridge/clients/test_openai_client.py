"""The newest ``openai`` client, beyond the scenarios of all clients."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture
async def client(bridge):
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="random-string") as client:
        yield client


async def test_a_base_url_without_a_version_works_too(bridge):
    async with openai.AsyncOpenAI(base_url=bridge.url, api_key="random-string") as client:
        response = await client.images.generate(prompt="a", response_format="url")

    assert response.data[0].b64_json is None
    assert response.data[0].url


async def test_models_are_listed_and_retrieved(client):
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


async def test_the_refusal_of_a_large_edit_reaches_the_client(client):
    with pytest.raises(openai.BadRequestError):
        await client.images.edit(prompt="a", image=b"\x89PNG" + bytes(5_000_000))
