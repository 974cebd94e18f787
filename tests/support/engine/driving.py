"""Drives an engine with a fake model, and collects the results of requests."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PillowImage

from latentwire_server.convert.image_metadata import describe_image
from latentwire_server.engine.engine import Engine
from latentwire_server.engine.errors import GenerationError
from latentwire_server.engine.events import Completed, Event, Image
from latentwire_server.engine.settings import EngineSettings
from latentwire_server.requests.request_warnings import warnings_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel, expected_pixels

if TYPE_CHECKING:
    from latentwire_server.engine.handover.stream import GenerationStream
    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.engine.snapshots import GenerationState
    from latentwire_server.models.protocol import DiffusionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All events of a request, and its error."""

    request: GenerationRequest
    events: tuple[Event, ...]
    error: GenerationError | None

    @property
    def images(self) -> list[Image]:
        return [event for event in self.events if isinstance(event, Image)]

    @property
    def pixels(self) -> list[np.ndarray]:
        return [pixels_of_file(image.data) for image in self.images]

    @property
    def is_complete(self) -> bool:
        return self.error is None and isinstance(self.events[-1], Completed)

    def of_kind(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]


class Driver:
    """A running engine and its model."""

    def __init__(self, model: DiffusionModel, **settings: Any) -> None:
        self._model = model
        describe = partial(describe_image, version="0")
        self.engine = Engine(EngineSettings(**settings), describe=describe)
        self._models: dict[str, DiffusionModel] = {}
        self.add_model(model)

    @property
    def model(self) -> FakeModel:
        assert isinstance(self._model, FakeModel)
        return self._model

    def add_model(self, model: DiffusionModel) -> None:
        self._models[model.info.id] = model
        self.engine.models.add(model)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        model = self._models[request.model]
        return self.engine.submit(request, spec=model, warnings=warnings_of(request, model))

    async def run(self, request: GenerationRequest) -> Result:
        return await read(self.submit(request), request)

    async def run_all(self, *requests: GenerationRequest) -> list[Result]:
        """Submits all requests before the first can start, then reads all streams."""
        streams = [self.submit(request) for request in requests]
        reading = [read(stream, request) for stream, request in zip(streams, requests, strict=True)]
        return await asyncio.gather(*reading)

    async def run_held(self, *requests: GenerationRequest) -> list[Result]:
        """Does the same, but with all requests running together from the first step on.

        The first request is held in its first call until the others are in the inbox.
        """
        self.model.hold()
        first = asyncio.create_task(self.run(requests[0]))
        await eventually(lambda: self.model.calls)
        rest = asyncio.create_task(self.run_all(*requests[1:]))
        await asyncio.sleep(0)
        self.model.let_go()
        return [await first, *await rest]

    def state(self, request: GenerationRequest) -> GenerationState:
        return self.engine.get(request.generation_id, owner=request.owner).state


async def read(stream: GenerationStream, request: GenerationRequest) -> Result:
    """Reads a stream to its end."""
    events: list[Event] = []
    error: GenerationError | None = None
    try:
        async for event in stream:
            events.append(event)  # noqa: PERF401 - keeps the events before an error
    except GenerationError as raised:
        error = raised
    return Result(request=request, events=tuple(events), error=error)


def pixels_of_file(data: bytes) -> np.ndarray:
    """Returns (height, width, 3) int16, so that differences do not wrap."""
    return np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def assert_expected_images(result: Result) -> None:
    """Compares every image with the expected one, which is computed without the engine."""
    wanted = result.request
    assert result.is_complete, result.error
    assert [image.seed for image in result.images] == list(wanted.seeds)
    for image, pixels in zip(result.images, result.pixels, strict=True):
        expected = expected_pixels(
            wanted.prompt,
            seed=image.seed,
            negative_prompt=wanted.negative_prompt,
            guidance_scale=wanted.guidance_scale,
            width=wanted.width,
            height=wanted.height,
        )
        assert np.abs(pixels - expected).max() <= 1
