"""Authentication, and what callers can see of each other."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.rpc.reflection import V1_SERVICE
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import Serving, error_details, request, serving

ALICE = (("authorization", "Bearer alice-key"),)
BOB = (("authorization", "Bearer bob-key"),)
KEYS = "alice-key,bob-key"

METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
] + [
    f"/{V1_SERVICE}/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/latentwire.v1.ImageGeneration/NoSuchMethod",
    "/no.such.Service/Method",
]


async def answer_of(
    server: Serving, method: str, metadata: tuple[tuple[str, str | bytes], ...]
) -> grpc.RpcError:
    call = server.channel.unary_stream(method)(b"", metadata=metadata, timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        [response async for response in call]
    return caught.value


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", "Bearer wrong"),), "TOKEN_INVALID"),
        ((("authorization", "Bearer alice-ke"),), "TOKEN_INVALID"),
        ((("authorization", "Bearer alice-key1"),), "TOKEN_INVALID"),
        ((("authorization", "Bearer "),), "TOKEN_INVALID"),
        ((("authorization", "alice-key"),), "TOKEN_INVALID"),
        ((("authorization", "Basic alice-key"),), "TOKEN_INVALID"),
        ((*ALICE, *BOB), "TOKEN_INVALID"),
    ],
)
async def test_every_method_refuses_a_caller_without_a_valid_key(
    metadata: tuple[tuple[str, str], ...], reason: str
):
    messages = set()
    async with serving(api_keys=KEYS) as server:
        for method in METHODS:
            refused = error_details(await answer_of(server, method, metadata))
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED, method
            assert refused.info.reason == reason
            messages.add(refused.message)
    assert len(messages) == 1


async def test_health_needs_no_key():
    async with serving(api_keys=KEYS) as server:
        check = server.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        assert (await check(b"")).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_valid_key_gives_access_to_every_service():
    async with serving(api_keys=KEYS) as server:
        for metadata in (ALICE, BOB, (("authorization", "bearer alice-key"),)):
            models = await server.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            assert len(models.models) == 1
        reflect = server.channel.stream_stream(f"/{V1_SERVICE}/ServerReflectionInfo")
        sent = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        assert [answer async for answer in reflect(iter([sent]), metadata=ALICE)]
        error = await answer_of(server, "/no.such.Service/Method", ALICE)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_key_file_holds_keys_too(tmp_path):
    (tmp_path / "keys").write_text("# the team's\nalice-key\n\nbob-key # for the bridge\n")
    async with serving(api_keys_file=tmp_path / "keys") as server:
        for metadata in (ALICE, BOB):
            await server.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            await server.stub.ListModels(
                pb.ListModelsRequest(), metadata=(("authorization", "Bearer # the team's"),)
            )


async def test_another_callers_generation_is_not_found():
    model = FakeModel()
    model.hold()
    async with serving(model, api_keys=KEYS) as server:
        stream = aiter(server.stub.GenerateImage(request(), metadata=ALICE))
        name = (await anext(stream)).generation
        await eventually(lambda: model.calls)
        for rpc, sent in (
            (server.stub.GetGeneration, pb.GetGenerationRequest(name=name)),
            (server.stub.CancelGeneration, pb.CancelGenerationRequest(name=name)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await rpc(sent, metadata=BOB)
            mine = error_details(caught.value)
            assert mine.info.reason == "GENERATION_NOT_FOUND"
        theirs = await server.stub.ListGenerations(pb.ListGenerationsRequest(), metadata=BOB)
        assert list(theirs.generations) == []
        assert theirs.total_count == 1
        own = await server.stub.ListGenerations(pb.ListGenerationsRequest(), metadata=ALICE)
        assert [one.name for one in own.generations] == [name]
        assert own.generations[0].state == pb.GENERATION_STATE_RUNNING


ADMIN = (("authorization", "Bearer admin-key"),)
UNLOAD = "/latentwire.v1.ModelAdmin/UnloadModel"
LIST = "/latentwire.v1.ImageGeneration/ListModels"


@pytest.mark.parametrize(
    ("settings", "metadata", "reasons"),
    [
        # Without any keys on this machine: everybody may administer.
        ({}, (), {UNLOAD: "REQUIRED", LIST: None}),
        # With keys for callers only: nobody may administer.
        ({"api_keys": KEYS}, (), {UNLOAD: "TOKEN_MISSING", LIST: "TOKEN_MISSING"}),
        ({"api_keys": KEYS}, ALICE, {UNLOAD: "ADMIN_KEY_NEEDED", LIST: None}),
        # With keys of both kinds.
        ({"api_keys": KEYS, "admin_keys": "admin-key"}, ALICE, {UNLOAD: "ADMIN_KEY_NEEDED"}),
        ({"api_keys": KEYS, "admin_keys": "admin-key"}, ADMIN, {UNLOAD: "REQUIRED", LIST: None}),
        # With keys for administration only.
        ({"admin_keys": "admin-key"}, (), {UNLOAD: "TOKEN_MISSING", LIST: None}),
        ({"admin_keys": "admin-key"}, ALICE, {UNLOAD: "TOKEN_INVALID", LIST: None}),
        ({"admin_keys": "admin-key"}, ADMIN, {UNLOAD: "REQUIRED", LIST: None}),
        # Open to a network without any keys: nobody may administer.
        ({"host": "0.0.0.0", "insecure": True}, (), {UNLOAD: "ADMIN_KEY_NEEDED", LIST: None}),
    ],
)
async def test_administration_needs_an_admin_key_except_on_a_local_server(
    settings: dict[str, object],
    metadata: tuple[tuple[str, str], ...],
    reasons: dict[str, str | None],
):
    async with serving(**settings) as server:
        for method, reason in reasons.items():
            call = server.channel.unary_unary(method)(b"", metadata=metadata, timeout=10)
            if reason is None:
                await call
                continue
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert error_details(caught.value).info.reason == reason
