"""What every one of OpenAI's clients goes through, and what surrounds it meanwhile."""

from __future__ import annotations

import asyncio
import io
import logging
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from blockbuster import blockbuster_ctx
from PIL import Image

from tests.support.bridge.bridging import Bridge, bridging
from tests.support.bridge.client_programs import KEY, Ask
from tests.support.eventually import eventually
from tests.support.server.serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.support.bridge.client_programs import Program, Running

PROMPT = "a red circle"
SEED = 7
RED = (200, 40, 40)
STEP_S = 0.1
"""Whoever reads more slowly than steps are taken gets the newest partial image only."""
PATIENCE_S = 1.0
LEAVES_AT_STEP = 5


def half_transparent() -> bytes:
    """OpenAI's mask, and a picture that is its own: the right half is to be edited."""
    image = Image.new("RGBA", (64, 64), (*RED, 255))
    image.paste((*RED, 0), (32, 0, 64, 64))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A real server with room for one generation and one that waits, and a bridge before it."""

    server: Serving
    bridge: Bridge
    statuses: list[int]
    """Of every answer of the bridge, in order."""

    @property
    def num_at_work(self) -> int:
        status = self.server.app._engine.status()
        return status.running_count + status.queued_count

    @property
    def num_calls(self) -> int:
        return len(self.server.model.calls)

    async def quiet(self) -> None:
        """Returns when nothing is at work and the device thread is through with its last call.

        A generation that its client leaves has ended at once, though the call that its rows are
        planned in is still to come; and an error reaches the client before what caused it ends.
        """
        await eventually(lambda: self.num_at_work == 0)
        await asyncio.wrap_future(self.server.app._engine._inbox.put_task(lambda: None))


class _Statuses(logging.Handler):
    """Hears of every answer of the bridge in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("answered"):
            self.seen.append(record.args[2])


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    statuses, edge = _Statuses(), logging.getLogger("latentwire_bridge.edge.edge")
    level = edge.level
    edge.addHandler(statuses)
    edge.setLevel(logging.INFO)
    try:
        with blockbuster_ctx(["latentwire_bridge", "latentwire"]) as detector:
            detector.functions["threading.Lock.acquire"].deactivate()
            async with (
                serving(api_keys=KEY, max_running=1, max_queued=1) as server,
                bridging(server.address) as bridge,
            ):
                yield Stage(server=server, bridge=bridge, statuses=statuses.seen)
    finally:
        edge.setLevel(level)
        edge.removeHandler(statuses)


@asynccontextmanager
async def slow_steps(stage: Stage) -> AsyncIterator[None]:
    stage.server.model.call_s = STEP_S
    try:
        yield
    finally:
        stage.server.model.call_s = 0.0


@asynccontextmanager
async def held(stage: Stage) -> AsyncIterator[None]:
    """Nothing gets done; whoever leaves must be forgotten nevertheless."""
    stage.server.model.hold()
    try:
        yield
        await eventually(lambda: stage.num_at_work == 0)
    finally:
        stage.server.model.let_go()


@asynccontextmanager
async def held_at_a_step(stage: Stage) -> AsyncIterator[None]:
    async with held(stage):
        stage.server.model.release(LEAVES_AT_STEP)
        yield


@asynccontextmanager
async def crowded(stage: Stage) -> AsyncIterator[None]:
    """No room, for one who runs and one who waits."""
    stage.server.model.hold()
    others = [asyncio.create_task(stage.bridge.generate_as(KEY)) for _ in range(2)]
    try:
        await eventually(lambda: stage.num_at_work == 2)
        yield
    finally:
        stage.server.model.let_go()
        await asyncio.gather(*others)


@asynccontextmanager
async def crowded_until_told(stage: Stage) -> AsyncIterator[None]:
    """Room as soon as somebody was told that there is none."""

    async def make_room() -> None:
        await eventually(lambda: 429 in stage.statuses[num_before:])
        stage.server.model.let_go()

    num_before = len(stage.statuses)
    async with crowded(stage), asyncio.TaskGroup() as tasks:
        tasks.create_task(make_room())
        yield


@asynccontextmanager
async def broken_numbers(stage: Stage) -> AsyncIterator[None]:
    """The denoiser fails at its second step."""
    second = stage.num_calls + 2
    fault = (lambda call: call.number >= second, lambda pred, _: torch.full_like(pred, torch.nan))
    stage.server.model.faults.append(fault)
    try:
        yield
    finally:
        stage.server.model.faults.clear()


def as_it_is(stage: Stage) -> AbstractAsyncContextManager[None]:
    del stage
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    ask: Ask
    around: Callable[[Stage], AbstractAsyncContextManager[None]] = as_it_is


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a scenario, on both sides."""

    told: Mapping[str, Any]
    """What the client's user sees."""
    num_calls: int
    """Denoiser calls that were made for it, the crowd's included."""
    statuses: list[int]
    """What the bridge answered, to the crowd too."""
    files: list[bytes]
    """What is behind the URLs of the answer."""

    @property
    def answer(self) -> Mapping[str, Any]:
        assert "answer" in self.told, self.told
        return self.told["answer"]

    @property
    def events(self) -> list[Mapping[str, Any]]:
        assert "events" in self.told, self.told
        return self.told["events"]

    @property
    def error(self) -> Mapping[str, Any]:
        assert "error" in self.told, self.told
        return self.told["error"]


def _drawing(**options: Any) -> Ask:
    fields = {"prompt": PROMPT, **options.pop("fields", {})}
    return Ask(fields=fields, extra={"seed": SEED, **options.pop("extra", {})}, **options)


_PICTURE = {"image": half_transparent()}
_MASKED = {**_PICTURE, "mask": half_transparent()}
_ONE_PARTIAL = {"partial_images": 1}

SCENARIOS: Mapping[str, Scenario] = {
    "every field": Scenario(
        ask=_drawing(
            fields={
                "model": "gpt-image-1",
                "quality": "medium",
                "background": "auto",
                "moderation": "low",
                "output_format": "png",
                "output_compression": 100,
                "style": "vivid",
                "user": "me",
            }
        )
    ),
    "b64": Scenario(ask=_drawing(fields={"n": 2, "size": "96x64", "response_format": "b64_json"})),
    "url": Scenario(ask=_drawing(fields={"n": 2, "response_format": "url"})),
    "extensions": Scenario(
        ask=_drawing(
            fields={"n": None, "size": None},
            extra={"steps": "2", "guidance_scale": "1.5", "negative_prompt": "blue"},
        )
    ),
    "edit": Scenario(ask=_drawing(call="edit", fields={"n": 2, "size": "64x64"}, files=_MASKED)),
    "variation": Scenario(ask=Ask(call="vary", fields={"n": 1, "size": "64x64"}, files=_PICTURE)),
    "models": Scenario(ask=Ask(call="list")),
    "model": Scenario(ask=Ask(call="retrieve", fields={"model": "models/fake"})),
    "no such model": Scenario(ask=Ask(call="retrieve", fields={"model": "org/unknown"})),
    "drawn by no such model": Scenario(ask=_drawing(fields={"model": "unknown"})),
    "bad size": Scenario(ask=_drawing(fields={"size": "100x100"})),
    "too many": Scenario(ask=_drawing(fields={"n": 99})),
    "edit of no picture": Scenario(ask=_drawing(call="edit", files={"image": b"\x89PNG"})),
    "variation of no picture": Scenario(ask=Ask(call="vary", files={"image": b"\x89PNG"})),
    "wrong key": Scenario(ask=_drawing(key="wrong")),
    "full": Scenario(ask=_drawing(), around=crowded),
    "failure": Scenario(ask=_drawing(max_retries=2), around=broken_numbers),
}
"""For all clients."""

SCENARIOS_SINCE_1_0: Mapping[str, Scenario] = {
    **SCENARIOS,
    "stream": Scenario(
        ask=_drawing(
            stream=True,
            fields={"partial_images": 2, "n": 2, "size": "64x64"},
            extra={"num_inference_steps": 6},
        ),
        around=slow_steps,
    ),
    "streamed edit": Scenario(
        ask=_drawing(call="edit", stream=True, fields=_ONE_PARTIAL, files=_MASKED),
        around=slow_steps,
    ),
    "stream of a bad size": Scenario(ask=_drawing(stream=True, fields={"size": "100x100"})),
    "failure on the way": Scenario(ask=_drawing(stream=True, max_retries=2), around=broken_numbers),
    "left early": Scenario(
        ask=_drawing(
            stream=True, fields=_ONE_PARTIAL, extra={"num_inference_steps": 8}, leave_after=1
        ),
        around=held_at_a_step,
    ),
    "full for a while": Scenario(ask=_drawing(max_retries=5), around=crowded_until_told),
    "impatient": Scenario(ask=_drawing(timeout_s=PATIENCE_S), around=held),
}
"""For those that stream images, repeat requests by themselves, and let one say how long to wait."""


async def outcomes_of(program: Program) -> dict[bool, dict[str, Outcome]]:
    """Returns what came of all scenarios, by name, for each way in which the client is used."""
    scenarios = SCENARIOS if program.is_legacy else SCENARIOS_SINCE_1_0
    async with staged() as stage, program.running() as client:
        return {
            is_async: {
                name: await outcome_of(scenario, stage, client, is_async=is_async)
                for name, scenario in scenarios.items()
            }
            for is_async in program.modes
        }


async def outcome_of(
    scenario: Scenario, stage: Stage, client: Running, *, is_async: bool
) -> Outcome:
    num_calls, num_statuses = stage.num_calls, len(stage.statuses)
    async with scenario.around(stage):
        told = await client.told(scenario.ask.line(stage.bridge.url, is_async=is_async))
    await stage.quiet()
    num_calls, statuses = stage.num_calls - num_calls, stage.statuses[num_statuses:]
    urls = [datum["url"] for datum in told.get("answer", {}).get("data", []) if "url" in datum]
    files = [await fetched(url, stage) for url in urls]
    return Outcome(told=told, num_calls=num_calls, statuses=statuses, files=files)


async def fetched(url: str, stage: Stage) -> bytes:
    answer = await stage.bridge.get(url.removeprefix(stage.bridge.url))
    assert answer.status == 200
    return answer.data
