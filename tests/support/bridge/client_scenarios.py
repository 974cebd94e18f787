"""The scenarios that every one of OpenAI's clients runs, and their circumstances."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from blockbuster import blockbuster_ctx

from tests.support.bridge.bridging import Bridge, bridging
from tests.support.bridge.client_programs import KEY, ClientCall
from tests.support.bridge.images import file_of, half_transparent
from tests.support.eventually import eventually
from tests.support.server.serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.support.bridge.client_programs import Program, Running

PROMPT = "a red circle"
SEED = 7
STEP_S = 0.1
"""A client that reads more slowly than the model takes steps gets only the newest partial image."""
CLIENT_TIMEOUT_S = 1.0
LEAVES_AT_STEP = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A bridge in front of a real server with room for one running and one queued generation."""

    server: Serving
    bridge: Bridge
    statuses: list[int]
    """The statuses of all answers of the bridge, in order."""

    @property
    def num_unfinished(self) -> int:
        status = self.server.app._engine.status()
        return status.running_count + status.queued_count

    @property
    def num_calls(self) -> int:
        return len(self.server.model.calls)

    async def settled(self) -> None:
        """Returns when no generation is left and the device thread has made its last call.

        A generation that its client leaves ends at once, though a call with its rows may be planned
        already; and an error reaches the client before the call that caused it ends.
        """
        await eventually(lambda: self.num_unfinished == 0)
        await asyncio.wrap_future(self.server.app._engine._inbox.put_task(lambda: None))


class _Statuses(logging.Handler):
    """Collects the status of every answer from the log of the bridge."""

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
    """The model is held; a generation whose client leaves must end nevertheless."""
    stage.server.model.hold()
    try:
        yield
        await eventually(lambda: stage.num_unfinished == 0)
    finally:
        stage.server.model.let_go()


@asynccontextmanager
async def held_at_a_step(stage: Stage) -> AsyncIterator[None]:
    async with held(stage):
        stage.server.model.release(LEAVES_AT_STEP)
        yield


@asynccontextmanager
async def full_queue(stage: Stage) -> AsyncIterator[None]:
    """One generation runs and one waits, so that there is no room."""
    stage.server.model.hold()
    others = [asyncio.create_task(stage.bridge.generate_as(KEY)) for _ in range(2)]
    try:
        await eventually(lambda: stage.num_unfinished == 2)
        yield
    finally:
        stage.server.model.let_go()
        await asyncio.gather(*others)


@asynccontextmanager
async def full_queue_until_refused(stage: Stage) -> AsyncIterator[None]:
    """The queue has room as soon as a request was refused."""

    async def make_room() -> None:
        await eventually(lambda: 429 in stage.statuses[num_before:])
        stage.server.model.let_go()

    num_before = len(stage.statuses)
    async with full_queue(stage), asyncio.TaskGroup() as tasks:
        tasks.create_task(make_room())
        yield


@asynccontextmanager
async def nan_from_the_denoiser(stage: Stage) -> AsyncIterator[None]:
    """The denoiser returns NaN from its second step on."""
    second = stage.num_calls + 2
    fault = (lambda call: call.number >= second, lambda pred, _: torch.full_like(pred, torch.nan))
    stage.server.model.faults.append(fault)
    try:
        yield
    finally:
        stage.server.model.faults.clear()


def unchanged(stage: Stage) -> AbstractAsyncContextManager[None]:
    del stage
    return nullcontext()


@dataclass(frozen=True)
class Scenario:
    call: ClientCall
    around: Callable[[Stage], AbstractAsyncContextManager[None]] = unchanged


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a scenario, on both sides."""

    seen: Mapping[str, Any]
    """What the user of the client gets."""
    num_calls: int
    """Denoiser calls during the scenario, for requests that fill the queue too."""
    statuses: list[int]
    """The statuses that the bridge answered, to requests that fill the queue too."""
    files: list[bytes]
    """The files at the URLs of the answer."""

    @property
    def answer(self) -> Mapping[str, Any]:
        assert "answer" in self.seen, self.seen
        return self.seen["answer"]

    @property
    def events(self) -> list[Mapping[str, Any]]:
        assert "events" in self.seen, self.seen
        return self.seen["events"]

    @property
    def error(self) -> Mapping[str, Any]:
        assert "error" in self.seen, self.seen
        return self.seen["error"]


def _generating(**options: Any) -> ClientCall:
    fields = {"prompt": PROMPT, **options.pop("fields", {})}
    return ClientCall(fields=fields, extra={"seed": SEED, **options.pop("extra", {})}, **options)


_IMAGE = {"image": file_of(half_transparent())}
_MASKED = {**_IMAGE, "mask": file_of(half_transparent())}
_ONE_PARTIAL = {"partial_images": 1}

SCENARIOS: Mapping[str, Scenario] = {
    "every field": Scenario(
        _generating(
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
    "b64": Scenario(_generating(fields={"n": 2, "size": "96x64", "response_format": "b64_json"})),
    "url": Scenario(_generating(fields={"n": 2, "response_format": "url"})),
    "extensions": Scenario(
        _generating(
            fields={"n": None, "size": None},
            extra={"steps": "2", "guidance_scale": "1.5", "negative_prompt": "blue"},
        )
    ),
    "edit": Scenario(_generating(method="edit", fields={"n": 2, "size": "64x64"}, files=_MASKED)),
    "variation": Scenario(
        ClientCall(method="vary", fields={"n": 1, "size": "64x64"}, files=_IMAGE)
    ),
    "models": Scenario(ClientCall(method="list")),
    "model": Scenario(ClientCall(method="retrieve", fields={"model": "models/fake"})),
    "no such model": Scenario(ClientCall(method="retrieve", fields={"model": "org/unknown"})),
    "generation by no such model": Scenario(_generating(fields={"model": "unknown"})),
    "bad size": Scenario(_generating(fields={"size": "100x100"})),
    "too many": Scenario(_generating(fields={"n": 99})),
    "edit of no image": Scenario(_generating(method="edit", files={"image": b"\x89PNG"})),
    "variation of no image": Scenario(ClientCall(method="vary", files={"image": b"\x89PNG"})),
    "wrong key": Scenario(_generating(key="wrong")),
    "full": Scenario(_generating(), around=full_queue),
    "failure": Scenario(_generating(max_retries=2), around=nan_from_the_denoiser),
}
"""For all clients."""

SCENARIOS_SINCE_1_0: Mapping[str, Scenario] = {
    **SCENARIOS,
    "stream": Scenario(
        _generating(
            stream=True,
            fields={"partial_images": 2, "n": 2, "size": "64x64"},
            extra={"num_inference_steps": 6},
        ),
        around=slow_steps,
    ),
    "streamed edit": Scenario(
        _generating(method="edit", stream=True, fields=_ONE_PARTIAL, files=_MASKED),
        around=slow_steps,
    ),
    "stream of a bad size": Scenario(_generating(stream=True, fields={"size": "100x100"})),
    "failure mid stream": Scenario(
        _generating(stream=True, max_retries=2), around=nan_from_the_denoiser
    ),
    "left early": Scenario(
        _generating(
            stream=True, fields=_ONE_PARTIAL, extra={"num_inference_steps": 8}, leave_after=1
        ),
        around=held_at_a_step,
    ),
    "full for a while": Scenario(_generating(max_retries=5), around=full_queue_until_refused),
    "impatient": Scenario(_generating(timeout_s=CLIENT_TIMEOUT_S), around=held),
}
"""For the clients that can stream images, retry by themselves and have a time-out."""


async def outcomes_of(program: Program) -> dict[bool, dict[str, Outcome]]:
    """Returns the outcomes of all scenarios by name, for each mode of the client."""
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
        seen = await client.outcome_of(scenario.call.line(stage.bridge.url, is_async=is_async))
    await stage.settled()
    num_calls, statuses = stage.num_calls - num_calls, stage.statuses[num_statuses:]
    urls = [datum["url"] for datum in seen.get("answer", {}).get("data", []) if "url" in datum]
    files = [await fetched(url, stage) for url in urls]
    return Outcome(seen=seen, num_calls=num_calls, statuses=statuses, files=files)


async def fetched(url: str, stage: Stage) -> bytes:
    answer = await stage.bridge.get(url.removeprefix(stage.bridge.url))
    assert answer.status == 200
    return answer.data
