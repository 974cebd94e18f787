"""Headers of callers that the bridge passes to the server: the key and the time-out."""

from __future__ import annotations

import openai
import pytest

from latentwire_bridge.edge.callers import keep_alive_s
from tests.support.client.scripted_server import accepted, completed, image, numbered
from tests.support.eventually import eventually


async def test_the_key_of_a_caller_is_sent_with_its_own_calls_only(scripted_bridge, servicer):
    servicer.script = numbered(accepted(), image(b"image"), completed())
    for key in ("one", "two"):
        await scripted_bridge.generate_as(key)
    await scripted_bridge.generate()
    await scripted_bridge.get("/v1/models", headers={"Authorization": "Bearer three"})

    sent = [metadata.get("authorization") for metadata in servicer.metadata]
    # Each request generates, and some also query the state of the queue.
    assert list(dict.fromkeys(sent)) == ["Bearer one", "Bearer two", None, "Bearer three"]


@pytest.mark.parametrize("key", ["schlüssel", "k" * 5_000])
async def test_a_malformed_key_is_refused_by_the_bridge(scripted_bridge, servicer, key):
    answer = await scripted_bridge.generate_as(key)

    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert servicer.requests == []


async def test_any_key_is_accepted_if_the_server_has_none(bridge):
    assert (await bridge.generate_as("random-string")).status == 200


async def test_a_server_with_keys_requires_one_for_generations_and_models(keyed_bridge):
    for call in (
        keyed_bridge.generate(),
        keyed_bridge.generate_as("wrong"),
        keyed_bridge.get("/v1/models"),
        keyed_bridge.get("/v1/models/dall-e-2"),
    ):
        answer = await call
        assert answer.status == 401
        assert answer.error["code"] == "invalid_api_key"
    assert (await keyed_bridge.generate_as("right")).status == 200
    assert (await keyed_bridge.get("/readyz")).status == 200


async def test_the_time_out_of_openais_client_becomes_the_servers_deadline(bridge, server):
    server.model.hold()
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", timeout=1.0, max_retries=2
    ) as client:
        # The answer comes before the client times out, which would make it retry twice.
        with pytest.raises(openai.InternalServerError) as raised:
            await client.images.generate(prompt="a red circle")

    assert raised.value.status_code == 504
    await eventually(lambda: len(server.model.calls) == 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-stainless-timeout": "1"},  # Node.js
        {"x-stainless-read-timeout": "0.5", "x-stainless-timeout": "600"},
        {"x-stainless-read-timeout": "nonsense", "x-stainless-timeout": "1"},
    ],
)
async def test_the_shortest_time_out_in_the_headers_becomes_the_deadline(bridge, server, headers):
    server.model.hold()
    answer = await bridge.send(
        "POST", "/v1/images/generations", json={"prompt": "a"}, headers=headers
    )

    assert answer.status == 504


@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
@pytest.mark.parametrize("value", ["nonsense", "nan", "-1", "0", "inf", ""])
async def test_an_invalid_time_out_is_ignored(bridge, name, value):
    headers = {name: value}
    answer = await bridge.send(
        "POST", "/v1/images/generations", json={"prompt": "a"}, headers=headers
    )

    assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "expected"), [({}, 10.0), ({"x-stainless-read-timeout": "600"}, 10.0)]
)
def test_a_stream_is_kept_alive_at_least_as_often_as_configured(headers, expected):
    assert keep_alive_s(headers, most_s=10.0) == expected


async def test_a_stream_may_take_longer_than_the_read_time_out_of_its_client(bridge, server):
    server.model.call_s = 0.3
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", timeout=0.6, max_retries=0
    ) as client:
        stream = await client.images.generate(
            prompt="a red circle", stream=True, extra_body={"num_inference_steps": 4}
        )
        assert [event.type async for event in stream] == ["image_generation.completed"]
