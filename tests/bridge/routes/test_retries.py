"""Requests that a client sends again: nothing is drawn twice, and the pictures are found."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
from PIL import Image

from latentwire_bridge.edge import rate_limits
from latentwire_bridge.edge.callers import request_id_of
from latentwire_bridge.openai.errors import ApiError
from tests.bridge.openai.test_errors import Code, failure
from tests.bridge.openai.test_streaming import events_in
from tests.bridge.routes.test_edits import file_of
from tests.support.bridge.bridging import Answer, Bridge, bridging
from tests.support.client.scripted_server import Hang, accepted, completed, image, numbered
from tests.support.eventually import eventually
from tests.support.server.serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GENERATIONS = "/v1/images/generations"
EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
STEPS = 4
FIELDS = {"prompt": "drawn once", "guidance_scale": 1}
PICTURE = file_of(Image.new("RGB", (64, 64), "red"))
DATA_URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


@pytest.fixture(autouse=True)
def _the_servers_state_is_waited_for(monkeypatch):
    """However busy the machine is; users get an answer without these headers instead."""
    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 30)


def keyed(key: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **headers}


def form(**fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData({"guidance_scale": "1", **fields})
    data.add_field("image", PICTURE, filename="any.png")
    return data


BODIES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "json": (GENERATIONS, lambda: {"json": FIELDS}),
    "stream": (GENERATIONS, lambda: {"json": {**FIELDS, "stream": True, "partial_images": 1}}),
    "edit as a form": (EDITS, lambda: {"data": form(prompt="drawn once", strength="1.0")}),
    "edit as json": (
        EDITS,
        lambda: {"json": {**FIELDS, "images": [{"image_url": DATA_URL}], "strength": 1.0}},
    ),
    "variation": (VARIATIONS, lambda: {"data": form(strength="1.0")}),
}


def picture_of(answer: Answer) -> str:
    assert answer.status == 200, answer.data
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        return str(events_in(answer.data)[-1]["b64_json"])
    return str(answer.json["data"][0]["b64_json"])


def is_idle(server: Serving) -> Callable[[], bool]:
    status = server.app._engine.status
    return lambda: (status().running_count, status().queued_count) == (0, 0)


async def give_up(drawing: asyncio.Task[Any]) -> None:
    drawing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await drawing


@pytest.mark.parametrize("kind", BODIES)
async def test_who_gave_up_and_asks_again_finds_what_was_begun(bridge, server, kind):
    path, body = BODIES[kind]
    headers = keyed(f"any text: {kind}")
    server.model.hold()
    first = asyncio.create_task(bridge.send("POST", path, headers=headers, **body()))
    await eventually(lambda: server.model.calls)
    await give_up(first)

    joining = asyncio.create_task(bridge.send("POST", path, headers=headers, **body()))
    server.model.let_go()
    joined = picture_of(await joining)
    again = picture_of(await bridge.send("POST", path, headers=headers, **body()))

    assert joined == again
    assert len(server.model.calls) == STEPS


async def test_repeats_at_the_same_time_are_drawn_once(bridge, server):
    options = {"json": FIELDS, "headers": keyed("one")}
    answers = await asyncio.gather(*[bridge.send("POST", GENERATIONS, **options) for _ in range(4)])
    assert len({picture_of(answer) for answer in answers}) == 1
    assert len(server.model.calls) == STEPS


async def test_without_a_key_who_gives_up_has_nothing_drawn_any_more(bridge, server):
    server.model.hold()
    drawing = asyncio.create_task(bridge.send("POST", GENERATIONS, json=FIELDS))
    await eventually(lambda: server.model.calls)
    await give_up(drawing)
    await eventually(is_idle(server))
    server.model.let_go()

    await bridge.send("POST", GENERATIONS, json=FIELDS)
    # The one step that was on its way, and those of the second.
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


async def test_how_pictures_are_handed_over_may_differ(bridge, server):
    for response_format in ("b64_json", "url"):
        answer = await bridge.send(
            "POST",
            GENERATIONS,
            json={**FIELDS, "response_format": response_format},
            headers=keyed("one"),
        )
        assert set(answer.json["data"][0]) == {response_format, "seed"}
    assert len(server.model.calls) == STEPS


async def test_each_caller_has_keys_of_its_own():
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


async def test_openais_client_gets_its_picture_though_its_time_was_over(bridge, server):
    server.model.hold()
    async with modern(bridge, timeout=0.5, max_retries=5) as client:
        drawing = asyncio.create_task(
            client.images.generate(prompt="drawn once", extra_headers=keyed("mine"))
        )
        rpcs = server.app._service
        await eventually(lambda: rpcs._num_open == 1)
        await eventually(lambda: rpcs._num_open == 0)
        server.model.let_go()
        response = await drawing
    assert response.data[0].b64_json
    assert len(server.model.calls) == STEPS


async def test_the_time_that_openais_client_waits_is_the_deadline(scripted_bridge, servicer):
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
    ("told_s", "expected"),
    [
        (0.3, ("1", "300", "1s")),
        (7.2, ("8", "7200", "8s")),
        # OpenAI's older clients wait no longer than a minute, newer ones than two.
        (903, ("60", "60000", "15m3s")),
    ],
)
async def test_a_full_queue_says_when_to_come_again_within_a_minute(
    scripted_bridge, servicer, told_s, expected
):
    servicer.script = [failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=told_s)]
    answer = await scripted_bridge.generate()
    assert answer.status == 429
    names = ("retry-after", "retry-after-ms", "x-ratelimit-reset-requests")
    assert tuple(answer.headers[name] for name in names) == expected
    assert answer.headers["x-ratelimit-limit-requests"] == "64"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


async def test_an_answer_tells_how_much_room_there_is(monkeypatch):
    monkeypatch.setattr(rate_limits, "_CACHED_S", 0)
    async with serving(max_running=1, max_queued=3) as server, bridging(server.address) as bridge:
        server.model.hold()
        drawing = [asyncio.create_task(bridge.generate(prompt=str(one))) for one in range(2)]
        await eventually(lambda: server.app._engine.status().queued_count == 1)
        body = json.dumps({"prompt": "a", "stream": True}).encode()
        headers = {"Content-Type": "application/json"}
        async with bridge.session.post(
            bridge.url + GENERATIONS, data=body, headers=headers
        ) as response:
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] in {"1", "2"}
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        server.model.let_go()
        for answer in await asyncio.gather(*drawing):
            assert answer.headers["x-ratelimit-limit-requests"] == "3"


async def test_the_server_is_asked_for_its_state_once_in_a_while(
    monkeypatch, scripted_bridge, servicer
):
    monkeypatch.setattr(rate_limits, "_CACHED_S", 60)
    servicer.script = numbered(accepted(), image(b"image"), completed())
    answers = await asyncio.gather(*[scripted_bridge.generate() for _ in range(10)])
    assert {one.headers["x-ratelimit-remaining-requests"] for one in answers} == {"64"}
    assert servicer.num_unary_calls == 1


async def test_a_server_that_does_not_tell_its_state_draws_all_the_same(scripted_bridge, servicer):
    servicer.script = numbered(accepted(), image(b"image"), completed())
    servicer.failure = failure(Code.UNIMPLEMENTED)
    answer = await scripted_bridge.generate()
    assert answer.status == 200
    assert "x-ratelimit-limit-requests" not in answer.headers


async def test_a_server_that_never_tells_its_state_costs_the_headers_only(monkeypatch):
    class Silent:
        async def server_info(self):
            await asyncio.Event().wait()

    monkeypatch.setattr(rate_limits, "_TIMEOUT_S", 0)
    limits = rate_limits.RateLimits()
    limits.refresh(Silent())
    assert await limits.headers() == {}
