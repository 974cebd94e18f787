"""Health and reflection, through the same interceptors as any other method."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from latentwire_server.rpc.reflection import V1_SERVICE
from tests.support.server.serving import Serving, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ["", "latentwire.v1.ImageGeneration", "latentwire.v1.ModelAdmin", "models/fake"]
ALPHA = "grpc.reflection.v1alpha.ServerReflection"


async def check(server: Serving, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_serves_until_the_model_is_loaded(name: str):
    async with serving(loads=False) as server:
        assert await check(server, name) == NOT_SERVING
        await server.app.load()
        assert await check(server, name) == SERVING


async def test_an_unknown_name_is_not_found(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await check(server, "models/other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_reports_every_change_until_the_server_stops():
    async with serving(loads=False) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watches = [aiter(stub.Watch(health_pb2.HealthCheckRequest(service=name))) for name in NAMES]
        other = aiter(stub.Watch(health_pb2.HealthCheckRequest(service="other")))
        assert (await anext(other)).status == UNKNOWN
        for watch in watches:
            assert (await anext(watch)).status == NOT_SERVING
        await server.app.load()
        for watch in watches:
            assert (await anext(watch)).status == SERVING
        stopping = asyncio.create_task(server.app.stop(grace_s=5))
        for watch in watches:
            assert (await anext(watch)).status == NOT_SERVING
        await stopping
        with pytest.raises(grpc.RpcError):
            await anext(watches[0])


async def reflect(
    server: Serving, service: str, *requests: reflection_pb2.ServerReflectionRequest
) -> list[reflection_pb2.ServerReflectionResponse]:
    method = server.channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [answer async for answer in method(iter(requests))]


@pytest.mark.parametrize("version", [V1_SERVICE, ALPHA])
async def test_reflection_describes_every_service_that_it_lists(server: Serving, version: str):
    (listed,) = await reflect(
        server, version, reflection_pb2.ServerReflectionRequest(list_services="")
    )
    names = {one.name for one in listed.list_services_response.service}
    assert names == {
        "latentwire.v1.ImageGeneration",
        "latentwire.v1.ModelAdmin",
        "grpc.health.v1.Health",
        V1_SERVICE,
        ALPHA,
    }
    questions = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
        for name in (*names, "google.rpc.ErrorInfo", "google.rpc.BadRequest")
    ]
    for question, answer in zip(questions, await reflect(server, version, *questions), strict=True):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(file)
            for file in answer.file_descriptor_response.file_descriptor_proto
        ]
        symbols = {
            f"{file.package}.{one.name}"
            for file in files
            for one in (*file.service, *file.message_type)
        }
        assert question.file_containing_symbol in symbols


@pytest.mark.parametrize("version", [V1_SERVICE, ALPHA])
async def test_reflection_reports_unknown_symbols(server: Serving, version: str):
    (answer,) = await reflect(
        server, version, reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such")
    )
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
