"""Requests that a client repeats: each generates once, and every attempt gets its images."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import openai
import pytest

from latentwire_bridge.edge import rate_limits
from latentwire_bridge.edge.callers import request_id_of
from latentwire_bridge.openai.errors import ApiError
from tests.support.bridge.bridging import Answer, Bridge, bridging
from tests.support.bridge.event_streams import events_in
from tests.support.bridge.images import data_url, file_of, plain_image
from tests.support.client.scripted_server import (
    Hang,
    accepted,
    completed,
    failure,
    image,
    numbered,
)
from tests.support.eventually import eventually
from tests.support.server.serving import Serving, events_of, request, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
STEPS = 4
FIELDS = {"prompt": "generated once", "guidance_scale": 1}
IMAGE_FILE = file_of(plain_image())
DATA_URL = data_url(IMAGE_FILE)


@pytest.fixture(autouse=True)
def _the_bridge_waits_for_the_state_of_the_queue(monkeypatch):
    """On a busy machine too, where users would get an answer without the rate-limit headers."""
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 30)


def keyed(key: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **headers}


def form(**fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData({"guidance_scale": "1", **fields})
    data.add_field("image", IMAGE_FILE, filename="any.png")
    return data


BODIES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "json": (GENERATIONS, lambda: {"json": FIELDS}),
    "stream": (GENERATIONS, lambda: {"json": {**FIELDS, "stream": True, "partial_images": 1}}),
    "edit as a form": (EDITS, lambda: {"data": form(prompt="generated once", strength="1.0")}),
    "edit as json": (
        EDITS,
        lambda: {"json": {**FIELDS, "images": [{"image_url": DATA_URL}], "strength": 1.0}},
    ),
    "variation": (VARIATIONS, lambda: {"data": form(strength="1.0")}),
}


def image_of(answer: Answer) -> str:
    assert answer.status == 200, answer.data
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        return str(events_in(answer.data)[-1]["b64_json"])
    return str(answer.json["data"][0]["b64_json"])


def is_idle(server: Serving) -> Callable[[], bool]:
    status = server.app._engine.status
    return lambda: (status().running_count, status().queued_count) == (0, 0)


async def give_up(generating: asyncio.Task[Any]) -> None:
    generating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await generating


@pytest.mark.parametrize("kind", BODIES)
async def test_a_repeated_request_joins_the_generation_of_an_abandoned_one(bridge, server, kind):
    path, body = BODIES[kind]
    headers = keyed(f"any text: {kind}")
    server.model.hold()
    first = asyncio.create_task(bridge.send("POST", path, headers=headers, **body()))
    await eventually(lambda: server.model.calls)
    await give_up(first)

    joining = asyncio.create_task(bridge.send("POST", path, headers=headers, **body()))
    server.model.let_go()
    joined = image_of(await joining)
    again = image_of(await bridge.send("POST", path, headers=headers, **body()))

    assert joined == again
    assert len(server.model.calls) == STEPS


async def test_simultaneous_repeats_generate_once(bridge, server):
    options = {"json": FIELDS, "headers": keyed("one")}
    answers = await asyncio.gather(*[bridge.send("POST", GENERATIONS, **options) for _ in range(4)])
    assert len({image_of(answer) for answer in answers}) == 1
    assert len(server.model.calls) == STEPS


async def test_an_abandoned_request_without_a_key_is_cancelled(bridge, server):
    server.model.hold()
    generating = asyncio.create_task(bridge.send("POST", GENERATIONS, json=FIELDS))
    await eventually(lambda: server.model.calls)
    await give_up(generating)
    await eventually(is_idle(server))
    server.model.let_go()

    await bridge.send("POST", GENERATIONS, json=FIELDS)
    # The step that was running, and those of the second request.
    assert len(server.model.calls) == 1 + STEPS


@pytest.mark.parametrize("change", [{"seed": 5}, {"prompt": "b"}, {"stream": True}])
async def test_another_request_with_the_same_key_is_refused(bridge, server, change):
    await bridge.send("POST", GENERATIONS, json=FIELDS, headers=keyed("one"))
    answer = await bridge.send("POST", GENERATIONS, json={**FIELDS, **change}, headers=keyed("one"))
    assert answer.status == 422
    assert answer.error["code"] == "idempotency_key_reused"
    assert answer.error["param"] == "Idempotency-Key"
    assert answer.headers["x-should-retry"] == "false"
    assert len(server.model.calls) == STEPS


async def test_repeats_may_have_another_response_format(bridge, server):
    for response_format in ("b64_json", "url"):
        answer = await bridge.send(
            "POST",
            GENERATIONS,
            json={**FIELDS, "response_format": response_format},
            headers=keyed("one"),
        )
        assert set(answer.json["data"][0]) == {response_format, "seed"}
    assert len(server.model.calls) == STEPS


async def test_each_caller_has_its_own_keys():
    async with serving(api_keys="ann,bob") as server, bridging(server.address) as bridge:
        for key in ("ann", "bob", "ann"):
            headers = keyed("one", Authorization=f"Bearer {key}")
            answer = await bridge.send("POST", GENERATIONS, json=FIELDS, headers=headers)
            assert answer.status == 200
        assert len(server.model.calls) == 2 * STEPS


def test_a_key_becomes_the_same_uuid_in_every_bridge():
    def of(key: str, caller: str = "") -> str | None:
        return request_id_of({"Idempotency-Key": key, "Authorization": f"Bearer {caller}"})

    assert of("a") == of("a") == str(uuid.UUID(of("a")))
    different = [of("a"), of("b"), of("a", "x"), of("ax"), of("a\udcff"), of("ä" * 9_000)]
    assert len(set(different)) == len(different)
    assert request_id_of({}) is None
    for empty in ("", "  "):
        with pytest.raises(ApiError, match="must not be empty"):
            of(empty)


@asynccontextmanager
async def modern(bridge: Bridge, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="any", **options) as client:
        yield client


async def test_openais_client_gets_its_image_after_a_time_out(bridge, server):
    server.model.hold()
    async with modern(bridge, timeout=0.5, max_retries=5) as client:
        generating = asyncio.create_task(
            client.images.generate(prompt="generated once", extra_headers=keyed("mine"))
        )
        rpcs = server.app._service
        await eventually(lambda: rpcs._num_open == 1)
        await eventually(lambda: rpcs._num_open == 0)
        server.model.let_go()
        response = await generating
    assert response.data[0].b64_json
    assert len(server.model.calls) == STEPS


async def test_the_time_out_of_openais_client_is_the_deadline(scripted_bridge, servicer):
    servicer.script = numbered(accepted(), Hang())
    async with modern(scripted_bridge, timeout=1.0, max_retries=0) as client:
        for headers, code in (({}, None), (keyed("mine"), "still_drawing")):
            with pytest.raises(openai.InternalServerError) as raised:
                await client.images.generate(prompt="a", extra_headers=headers)
            assert raised.value.status_code == 504
            assert raised.value.code == code
            should_retry = raised.value.response.headers.get("x-should-retry")
            assert should_retry == (None if headers else "false")
    assert [one.disconnect_policy for one in servicer.requests] == [0, 2]


@pytest.mark.parametrize(
    ("retry_after_s", "expected"),
    [
        (0.3, ("1", "300", "1s")),
        (7.2, ("8", "7200", "8s")),
        # OpenAI's older clients wait no longer than a minute, newer ones than two.
        (903, ("60", "60000", "15m3s")),
    ],
)
async def test_a_full_queue_is_retried_after_a_minute_at_most(
    scripted_bridge, servicer, retry_after_s, expected
):
    servicer.script = [
        failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=retry_after_s)
    ]
    answer = await scripted_bridge.generate()
    assert answer.status == 429
    names = ("retry-after", "retry-after-ms", "x-ratelimit-reset-requests")
    assert tuple(answer.headers[name] for name in names) == expected
    assert answer.headers["x-ratelimit-limit-requests"] == "64"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


async def test_an_answer_has_the_free_places_in_the_queue():
    async with serving(max_running=1, max_queued=3) as server, bridging(server.address) as bridge:
        server.model.hold()
        # Past the bridge, which may answer with a state of the queue that is a second old.
        calls = [server.stub.GenerateImage(request(str(number))) for number in range(2)]
        generating = [asyncio.create_task(events_of(call)) for call in calls]
        await eventually(lambda: server.app._engine.status().queued_count == 1)
        body = json.dumps({"prompt": "a", "stream": True}).encode()
        headers = {"Content-Type": "application/json"}
        async with bridge.session.post(
            bridge.url + GENERATIONS, data=body, headers=headers
        ) as response:
            # The request itself is counted if the server queues it before it answers.
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] in {"1", "2"}
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        plain = asyncio.create_task(bridge.generate())
        server.model.let_go()
        assert (await plain).headers["x-ratelimit-limit-requests"] == "3"
        await asyncio.gather(*generating)


async def test_the_state_of_the_queue_is_cached(monkeypatch, scripted_bridge, servicer):
    monkeypatch.setattr(rate_limits, "_CACHED_S", 60)
    servicer.script = numbered(accepted(), image(b"image"), completed())
    answers = await asyncio.gather(*[scripted_bridge.generate() for _ in range(10)])
    assert {one.headers["x-ratelimit-remaining-requests"] for one in answers} == {"64"}
    assert servicer.num_unary_calls == 1


async def test_a_server_that_does_not_report_its_queue_generates(scripted_bridge, servicer):
    servicer.script = numbered(accepted(), image(b"image"), completed())
    servicer.failure = failure(grpc.StatusCode.UNIMPLEMENTED)
    answer = await scripted_bridge.generate()
    assert answer.status == 200
    assert "x-ratelimit-limit-requests" not in answer.headers


async def test_a_server_that_never_reports_its_queue_costs_only_the_headers(monkeypatch):
    class Silent:
        async def server_info(self):
            await asyncio.Event().wait()

    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 0)
    limits = rate_limits.RateLimits()
    limits.refresh(Silent())
    assert await limits.headers() == {}
