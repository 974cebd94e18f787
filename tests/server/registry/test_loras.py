"""Adapters over the wire: requested, echoed, written into the file, listed."""

from __future__ import annotations

import io
import json

import grpc
import pytest
from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.models.errors import LoraError
from latentwire_server.models.info import LoraInfo
from tests.support.fakes import FakeModel
from tests.support.server.serving import error_details, events_of, images_of, request, serving

LORAS = (LoraInfo(id="style", num_bytes=10), LoraInfo(id="person", num_bytes=10))
SENT = [pb.Lora(id="person", scale=-0.5), pb.Lora(id="style")]


async def test_adapters_are_applied_echoed_and_written_into_the_file():
    async with serving(FakeModel(loras=LORAS)) as server:
        responses = await events_of(server.stub.GenerateImage(request(loras=SENT)))
        again = await events_of(server.stub.GenerateImage(responses[0].accepted.effective_request))
        plain = await events_of(server.stub.GenerateImage(request()))
    assert server.model.used_scales == [{"person": -0.5, "style": 1.0}] * 2
    effective = responses[0].accepted.effective_request
    assert [(one.id, one.scale) for one in effective.loras] == [("person", -0.5), ("style", 1.0)]
    assert again[0].accepted.effective_request == effective
    assert not plain[0].accepted.effective_request.loras
    (file,) = images_of(responses)
    text = json.loads(Image.open(io.BytesIO(file)).text["latentwire"])
    assert text["request"]["loras"] == [
        {"id": "person", "scale": -0.5}, {"id": "style", "scale": 1.0}
    ]  # fmt: skip


async def test_the_model_lists_its_adapters():
    async with serving(FakeModel(loras=LORAS)) as server:
        answer = await server.stub.GetModel(pb.GetModelRequest())
    assert list(answer.model.loras) == ["style", "person"]


async def test_an_adapter_that_cannot_be_loaded_ends_its_generation_by_name(
    monkeypatch: pytest.MonkeyPatch,
):
    def broken(self: FakeModel, ids: object) -> None:
        id_ = "style"
        raise LoraError(id_, "its file can no longer be read")

    monkeypatch.setattr(FakeModel, "with_loras", broken)
    async with serving(FakeModel(loras=LORAS)) as server:
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(server.stub.GenerateImage(request(loras=[pb.Lora(id="style")])))
        responses = await events_of(server.stub.GenerateImage(request()))
    failed = error_details(caught.value)
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.info.reason == "LORA_UNUSABLE"
    assert "style" in failed.message
    assert images_of(responses)
