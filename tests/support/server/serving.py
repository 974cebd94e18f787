"""The real server in the test's own event loop, with a FakeModel."""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2, status_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.app import Application, build
from latentwire_server.models.info import ModelSize
from latentwire_server.settings.settings import Settings
from tests.support.fakes import FakeModel
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from latentwire_server.models.files.hub import Report


@dataclass(frozen=True, kw_only=True)
class Serving:
    app: Application
    model: FakeModel
    channel: grpc.aio.Channel

    @property
    def address(self) -> str:
        return self.app.address

    @property
    def stub(self) -> rpc.ImageGenerationStub:
        return rpc.ImageGenerationStub(self.channel)

    @property
    def admin(self) -> rpc.ModelAdminStub:
        return rpc.ModelAdminStub(self.channel)


@dataclass(kw_only=True)
class LoadedModel:
    """A ``LoadableModel`` that returns an existing fake model."""

    model: FakeModel
    aliases: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    preload: bool = True
    may_run_uncompiled: bool = False

    @property
    def id(self) -> str:
        return self.model.id

    def spec(self, *, fetch: bool = False) -> FakeModel | None:
        return None

    def measure(self, report: Report) -> ModelSize:
        return ModelSize(weights_bytes=0)

    def load(self, report: Report, *, compiles: bool = True) -> FakeModel:
        return self.model


@dataclass(kw_only=True)
class ServedModel:
    """A ``LoadableModel`` that makes a fake model on each load: large, slow, or broken."""

    id: str
    aliases: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    programs_bytes: int = 0
    """The expected size of its compiled programs."""
    held_bytes: int | None = None
    """The memory that it takes once loaded; None: as expected."""
    may_run_uncompiled: bool = False
    preload: bool = False
    is_known: bool = True
    """Whether its configuration can be read without its weights."""
    is_remote: bool = False
    """Whether its configuration has to be downloaded for that."""
    error: Exception | None = None
    num_loads: int = 0
    make: Callable[[], FakeModel] | None = None

    def __post_init__(self) -> None:
        self._loaded: list[weakref.ref[FakeModel]] = []
        self._may_load = threading.Event()
        self._may_load.set()

    @property
    def model(self) -> FakeModel | None:
        """The loaded model, while something references it."""
        return self._loaded[-1]() if self._loaded else None

    def hold(self) -> None:
        """Makes loads wait halfway."""
        self._may_load.clear()

    def let_go(self) -> None:
        self._may_load.set()
        model = self.model
        if model is not None:
            model.let_go()

    def spec(self, *, fetch: bool = False) -> FakeModel | None:
        is_here = fetch or not self.is_remote
        return FakeModel(id=self.id) if self.is_known and is_here else None

    def measure(self, report: Report) -> ModelSize:
        return ModelSize(weights_bytes=self.size_bytes, programs_bytes=self.programs_bytes)

    def load(self, report: Report, *, compiles: bool = True) -> FakeModel:
        self.num_loads += 1
        report(self.size_bytes // 2, self.size_bytes)
        assert self._may_load.wait(timeout=scaled(30))
        if self.error is not None:
            raise self.error
        model = FakeModel(id=self.id) if self.make is None else self.make()
        expected = self.size_bytes + self.programs_bytes
        model.memory_bytes = expected if self.held_bytes is None else self.held_bytes
        if not compiles:
            model.memory_bytes = self.size_bytes
        self._loaded.append(weakref.ref(model))
        return model


@asynccontextmanager
async def serving_models(*models: ServedModel, **settings: object) -> AsyncIterator[Serving]:
    """Serves several models, the first one by default."""
    given = await asyncio.to_thread(Settings.load, {"port": 0, "max_rows": 8, **settings})
    app = await build(given, models)
    await app.start()
    try:
        await app.load()
        async with grpc.aio.insecure_channel(app.address) as channel:
            yield Serving(app=app, model=FakeModel(), channel=channel)
    finally:
        for served in models:
            served.let_go()
        await app.stop(grace_s=0)


@asynccontextmanager
async def serving(
    model: FakeModel | None = None,
    *,
    others: Sequence[FakeModel] = (),
    loads: bool = True,
    **settings: object,
) -> AsyncIterator[Serving]:
    fake = model or FakeModel()
    given = await asyncio.to_thread(Settings.load, {"port": 0, "max_rows": 8, **settings})
    app = await build(
        given,
        [
            LoadedModel(model=fake, aliases=given.model_aliases, limits=given.limit_overrides),
            *(LoadedModel(model=one) for one in others),
        ],
    )
    await app.start()
    try:
        if loads:
            await app.load()
        async with grpc.aio.insecure_channel(app.address) as channel:
            yield Serving(app=app, model=fake, channel=channel)
    finally:
        for one in (fake, *others):
            one.let_go()
        await app.stop(grace_s=0)


def request(prompt: str = "a red circle", **fields: object) -> pb.GenerateImageRequest:
    return pb.GenerateImageRequest(prompt=prompt, **fields)


async def events_of(call: grpc.aio.UnaryStreamCall) -> list[pb.GenerateImageResponse]:
    return [response async for response in call]


def kind(response: pb.GenerateImageResponse) -> str:
    return response.WhichOneof("event")


def images_of(responses: list[pb.GenerateImageResponse]) -> list[bytes]:
    """Assembles the image files from images and chunks, by the contract alone."""
    files: dict[int, bytearray] = {}
    for response in responses:
        if kind(response) == "image":
            files[response.image.index] = bytearray(response.image.data)
        elif kind(response) == "image_chunk":
            data = files[response.image_chunk.image_index]
            assert len(data) == response.image_chunk.offset
            data += response.image_chunk.data
    return [bytes(files[index]) for index in sorted(files)]


@dataclass(frozen=True, kw_only=True)
class ErrorDetails:
    """The status and error details of a failed call."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    violations: dict[str, str]
    """Descriptions by field."""
    reasons: dict[str, str]
    retry_after_s: float | None


def error_details(error: grpc.RpcError) -> ErrorDetails:
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    assert status.code == error.code().value[0]
    assert info.domain == "latentwire.v1"
    return ErrorDetails(
        code=error.code(),
        message=error.details(),
        info=info,
        violations={one.field: one.description for one in bad.field_violations},
        reasons={one.field: one.reason for one in bad.field_violations},
        retry_after_s=retry_after_s,
    )
