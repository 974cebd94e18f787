"""The real server in the test's own event loop, round a FakeModel."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2, status_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.app import Application, build
from latentwire_server.model_choice import ModelToLoad
from latentwire_server.settings import load_settings
from tests.fakes import FakeModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from latentwire_server.settings import Settings


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


def _to_load(model: FakeModel, settings: Settings) -> ModelToLoad:
    return ModelToLoad(
        id=model.id,
        load=lambda: model,
        aliases=settings.model_aliases,
        limits=settings.limit_overrides,
    )


def _itself(model: FakeModel) -> FakeModel:
    return model


@asynccontextmanager
async def serving(
    model: FakeModel | None = None,
    *,
    others: Sequence[FakeModel] = (),
    loads: bool = True,
    **settings: object,
) -> AsyncIterator[Serving]:
    fake = model or FakeModel()
    given = await asyncio.to_thread(load_settings, {"port": 0, "max_rows": 8, **settings})
    app = await build(
        given,
        [
            _to_load(fake, given),
            *(ModelToLoad(id=other.id, load=partial(_itself, other)) for other in others),
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
    """Puts the files together, knowing nothing but the contract."""
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
class Told:
    """What a failed call told its caller."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    violations: dict[str, str]
    """Descriptions by field."""
    reasons: dict[str, str]
    retry_after_s: float | None


def told(error: grpc.RpcError) -> Told:
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
    return Told(
        code=error.code(),
        message=error.details(),
        info=info,
        violations={one.field: one.description for one in bad.field_violations},
        reasons={one.field: one.reason for one in bad.field_violations},
        retry_after_s=retry_after_s,
    )
