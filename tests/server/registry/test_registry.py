"""Models are loaded on demand, and unloaded when others need their memory."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.registry.loadable_model import ModelLoadError
from latentwire_server.settings.files import SettingsError
from tests.support.eventually import eventually
from tests.support.fake_faults import above_rows, raising
from tests.support.fakes import FakeModel
from tests.support.server.serving import (
    ErrorDetails,
    ServedModel,
    Serving,
    error_details,
    events_of,
    kind,
    request,
    serving_models,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

BROKEN = ModelLoadError("model '/srv/b': no weights", reason="no weights")


async def state(server: Serving, name: str) -> int:
    answer = await server.stub.GetModel(pb.GetModelRequest(name=name))
    return answer.model.state


async def is_serving(server: Serving, name: str) -> bool:
    stub = health_pb2_grpc.HealthStub(server.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def begun(
    server: Serving, sent: pb.GenerateImageRequest, **options: object
) -> tuple[str, AsyncIterator[pb.GenerateImageResponse]]:
    """Starts a generation; returns its name and the rest of its events."""
    stream = aiter(server.stub.GenerateImage(sent, **options))
    first = await anext(stream)
    assert kind(first) == "accepted"
    return first.generation, stream


async def failure(call: Awaitable[object]) -> ErrorDetails:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return error_details(caught.value)


async def test_an_unloaded_model_is_described():
    async with serving_models(ServedModel(id="a", preload=True), ServedModel(id="b")) as server:
        first, second = (await server.stub.ListModels(pb.ListModelsRequest())).models
        assert (first.state, second.state) == (pb.MODEL_STATE_READY, pb.MODEL_STATE_UNLOADED)
        assert second.limits == first.limits
        assert second.schedulers == first.schedulers
        assert second.defaults.num_inference_steps == 4
        assert list(second.capabilities) == list(first.capabilities)
        assert [await is_serving(server, f"models/{id_}") for id_ in "ab"] == [True, False]
        assert await is_serving(server, "")


async def test_a_request_loads_its_model_and_gets_its_progress():
    served = ServedModel(id="b", size_bytes=100)
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        events = await events_of(server.stub.GenerateImage(request(model="b")))
        kinds = list(dict.fromkeys(map(kind, events)))
        assert kinds == ["accepted", "model_loading", "progress", "image", "completed"]
        assert events[0].accepted.effective_request.num_inference_steps == 4
        loading = [one.model_loading for one in events if kind(one) == "model_loading"]
        assert {one.model for one in loading} == {"models/b"}
        assert all(one.loaded_bytes <= one.total_bytes for one in loading)
        assert [one.sequence for one in events] == list(range(1, len(events) + 1))
        assert await state(server, "b") == pb.MODEL_STATE_READY
        assert await is_serving(server, "models/b")


async def test_all_requests_for_a_model_wait_for_one_load():
    served = ServedModel(id="b", size_bytes=100)
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        streams = [await begun(server, request(f"{n}", model="b")) for n in range(3)]
        for _, stream in streams:
            event = await anext(stream)
            assert event.model_loading.model == "models/b"
        listed = await server.stub.ListGenerations(pb.ListGenerationsRequest())
        assert [one.name for one in listed.generations] == [name for name, _ in streams]
        assert {one.state for one in listed.generations} == {pb.GENERATION_STATE_QUEUED}
        assert await state(server, "b") == pb.MODEL_STATE_LOADING
        generated = await events_of(server.stub.GenerateImage(request(model="a")))
        assert kind(generated[-1]) == "completed", "others are served meanwhile"
        served.let_go()
        for _, stream in streams:
            assert [kind(event) async for event in stream][-1] == "completed"
    assert served.num_loads == 1


async def test_a_generation_can_be_cancelled_while_its_model_loads():
    served = ServedModel(id="b")
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        name, stream = await begun(server, request(model="b"))
        await server.stub.CancelGeneration(pb.CancelGenerationRequest(name=name))
        refused = await failure(_rest(stream))
        assert refused.info.reason == "CANCELLED_BY_REQUEST"
        served.let_go()
        await eventually(lambda: served.model)
        assert served.model.calls == []


async def test_a_deadline_applies_while_the_model_loads():
    served = ServedModel(id="b")
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        name, stream = await begun(server, request(model="b"), timeout=0.3)
        with pytest.raises(grpc.RpcError) as caught:
            await _rest(stream)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        asked = pb.GetGenerationRequest(name=name)
        ended = (await server.stub.GetGeneration(asked)).generation
        assert ended.state == pb.GENERATION_STATE_CANCELLED


async def test_the_log_names_the_model_that_failed(caplog):
    errors = {"b": BROKEN, "c": OSError("strange")}
    models = [ServedModel(id=id_, preload=True, error=error) for id_, error in errors.items()]
    async with serving_models(ServedModel(id="a", preload=True), *models):
        logged = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert f"model failed model=b reason={BROKEN}" in logged
    assert any(one.startswith("loading failed model=c error_id=") for one in logged)


async def test_a_failed_model_reports_the_reason_and_the_others_keep_serving():
    served = ServedModel(id="b", error=BROKEN)
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        _, stream = await begun(server, request(model="b"))
        refused = await failure(_rest(stream))
        assert (refused.code, refused.info.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "MODEL_FAILED",
        )
        assert "no weights" in refused.message
        assert "/srv" not in refused.message
        model = (await server.stub.GetModel(pb.GetModelRequest(name="b"))).model
        assert (model.state, model.failure_message) == (pb.MODEL_STATE_FAILED, "no weights")

        at_once = await failure(events_of(server.stub.GenerateImage(request(model="b"))))
        assert at_once.info.reason == "MODEL_FAILED"
        assert served.num_loads == 1, "a request does not try again"
        assert [await is_serving(server, name) for name in ("models/b", "")] == [False, True]
        generated = await events_of(server.stub.GenerateImage(request()))
        assert kind(generated[-1]) == "completed"

        served.error = None
        loaded = await events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b")))
        assert loaded[-1].model.state == pb.MODEL_STATE_READY
        generated = await events_of(server.stub.GenerateImage(request(model="b")))
        assert kind(generated[-1]) == "completed"


async def test_an_unexpected_failure_does_not_reveal_the_librarys_message():
    served = ServedModel(id="b", error=OSError("secret path"))
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        refused = await failure(events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b"))))
    assert refused.info.reason == "MODEL_FAILED"
    assert "secret" not in refused.message


async def test_a_server_whose_models_all_fail_does_not_start():
    models = [ServedModel(id=id_, preload=True, error=BROKEN) for id_ in "ab"]
    with pytest.raises(SettingsError, match=r"/srv/b.*; .*/srv/b"):
        async with serving_models(*models):
            pass


async def test_the_least_recently_used_models_make_room():
    models = {id_: ServedModel(id=id_, size_bytes=40) for id_ in "abc"}
    async with serving_models(*models.values(), memory_budget_bytes=100) as server:
        for id_ in ("a", "b", "a", "c"):
            await events_of(server.stub.GenerateImage(request(model=id_)))
        states = [await state(server, id_) for id_ in "abc"]
        assert states == [pb.MODEL_STATE_READY, pb.MODEL_STATE_UNLOADED, pb.MODEL_STATE_READY]
        gc.collect()
        assert models["b"].model is None, "something still references it"
        assert not await is_serving(server, "models/b")
        generated = await events_of(server.stub.GenerateImage(request(model="b")))
        assert kind(generated[-1]) == "completed"
        assert [served.num_loads for served in models.values()] == [1, 2, 1]
        assert await state(server, "a") == pb.MODEL_STATE_UNLOADED


async def test_nothing_is_unloaded_for_a_model_that_does_not_fit_at_all():
    models = [ServedModel(id="a", preload=True, size_bytes=40), ServedModel(id="b", size_bytes=101)]
    async with serving_models(*models, memory_budget_bytes=100) as server:
        _, stream = await begun(server, request(model="b"))
        refused = await failure(_rest(stream))
        assert "101 bytes; memory_budget_bytes is 100" in refused.message
        assert await state(server, "a") == pb.MODEL_STATE_READY
        assert await state(server, "b") == pb.MODEL_STATE_FAILED
    assert models[1].num_loads == 0


async def sizes(server: Serving) -> dict[str, int]:
    answer = await server.stub.ListModels(pb.ListModelsRequest())
    return {one.name: one.memory_bytes for one in answer.models if one.memory_bytes}


async def load(server: Serving, id_: str) -> pb.Model:
    events = await events_of(server.admin.LoadModel(pb.LoadModelRequest(name=id_)))
    return events[-1].model


async def test_the_actual_memory_of_a_loaded_model_counts():
    models = [
        ServedModel(id="a", preload=True, size_bytes=20),
        ServedModel(id="b", size_bytes=40, programs_bytes=10, held_bytes=90),
        ServedModel(id="c", size_bytes=40, programs_bytes=20, held_bytes=50),
        ServedModel(id="d", size_bytes=50),
    ]
    async with serving_models(*models, memory_budget_bytes=100) as server:
        assert await sizes(server) == {"models/a": 20}
        await load(server, "b")
        assert await sizes(server) == {"models/b": 90}, "it is more than was expected"
        await load(server, "c")
        assert await sizes(server) == {"models/c": 50}, "what b held is gone"
        await load(server, "d")
        assert await sizes(server) == {"models/c": 50, "models/d": 50}


@pytest.mark.parametrize("held_bytes", [None, 120], ids=["expected", "unexpected"])
async def test_a_model_without_room_for_compiled_programs_is_loaded_uncompiled(
    held_bytes: int | None,
):
    sized = {"size_bytes": 60, "programs_bytes": 60 if held_bytes is None else 10}
    may = ServedModel(id="may", may_run_uncompiled=True, held_bytes=held_bytes, **sized)
    must = ServedModel(id="must", held_bytes=held_bytes, **sized)
    async with serving_models(ServedModel(id="a"), may, must, memory_budget_bytes=100) as server:
        await load(server, "may")
        assert await sizes(server) == {"models/may": 60}
        refused = await failure(load(server, "must"))
        assert "120 bytes; memory_budget_bytes is 100" in refused.message
        gc.collect()
        assert must.model is None, "something still references it"
        assert await state(server, "must") == pb.MODEL_STATE_FAILED


async def complete(server: Serving, sent: pb.GenerateImageRequest) -> None:
    last = (await events_of(server.stub.GenerateImage(sent)))[-1]
    assert kind(last) == "completed"


@pytest.fixture
async def crowded() -> AsyncIterator[tuple[Serving, ServedModel, ServedModel]]:
    """Room for one of two models, the first of which is in use until ``let_go``."""
    models = [ServedModel(id="a", preload=True, size_bytes=60), ServedModel(id="b", size_bytes=60)]
    async with serving_models(*models, memory_budget_bytes=100) as server:
        models[0].model.hold()
        running = asyncio.create_task(complete(server, request("running", model="a")))
        await eventually(lambda: models[0].model.calls)
        yield server, *models
        models[0].let_go()
        await running


async def test_a_request_waits_until_models_in_use_leave_room(crowded):
    server, first, second = crowded
    _, stream = await begun(server, request(model="b"))
    while (event := await anext(stream)).model_loading.total_bytes == 0:
        assert event.model_loading.model == "models/b"
    assert (event.model_loading.loaded_bytes, event.model_loading.total_bytes) == (0, 60)
    assert [await state(server, id_) for id_ in "ab"] == [
        pb.MODEL_STATE_READY,
        pb.MODEL_STATE_LOADING,
    ]
    assert second.num_loads == 0, "nothing is unloaded before enough room is available"
    first.let_go()
    assert [kind(event) async for event in stream][-1] == "completed"
    assert await state(server, "a") == pb.MODEL_STATE_UNLOADED


async def test_a_busy_model_does_not_block_another_forever(crowded):
    server, first, second = crowded
    order: list[str] = []

    async def noted(id_: str, prompt: str) -> None:
        await complete(server, request(prompt, model=id_))
        order.append(prompt)

    async with asyncio.TaskGroup() as group:
        group.create_task(noted("b", "b waits"))
        await eventually(lambda: _is_held(server, "a"))
        for number in range(3):
            group.create_task(noted("a", f"a later {number}"))
        await eventually(lambda: len(_waiting(server)) == 4)
        assert first.model.calls_with("a later 0") == []
        first.let_go()
    assert order[0] == "b waits"
    assert sorted(order[1:]) == ["a later 0", "a later 1", "a later 2"]
    assert (first.num_loads, second.num_loads) == (2, 1)


@pytest.mark.parametrize("way", ["cancelled", "late"])
async def test_nothing_is_unloaded_for_requests_that_no_longer_wait(crowded, way: str):
    server, first, second = crowded
    options = {"timeout": 0.5} if way == "late" else {}
    name, stream = await begun(server, request(model="b"), **options)
    await eventually(lambda: _is_held(server, "a"))
    later = asyncio.create_task(complete(server, request("later", model="a")))
    await eventually(lambda: len(_waiting(server)) == 2)
    if way == "cancelled":
        await server.stub.CancelGeneration(pb.CancelGenerationRequest(name=name))
    with pytest.raises(grpc.RpcError) as caught:
        await _rest(stream)
    expected = {
        "cancelled": grpc.StatusCode.CANCELLED,
        "late": grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert caught.value.code() is expected[way]
    await eventually(lambda: not _is_held(server, "a"))
    assert await state(server, "b") == pb.MODEL_STATE_UNLOADED
    first.let_go()
    await later
    assert (first.num_loads, second.num_loads) == (1, 0)


async def test_load_model_waits_for_room_only_while_its_caller_waits(crowded):
    server, first, second = crowded
    load = server.admin.LoadModel(pb.LoadModelRequest(name="b"))
    await anext(aiter(load))
    await eventually(lambda: _is_held(server, "a"))
    load.cancel()
    await eventually(lambda: not _is_held(server, "a"))
    assert await state(server, "b") == pb.MODEL_STATE_UNLOADED
    again = asyncio.create_task(events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b"))))
    await eventually(lambda: _is_held(server, "a"))
    first.let_go()
    assert (await again)[-1].model.state == pb.MODEL_STATE_READY
    assert second.num_loads == 1


async def test_an_idle_model_can_be_unloaded_and_is_loaded_again_on_demand():
    served = ServedModel(id="a", preload=True)
    async with serving_models(served) as server:
        served.model.hold()
        _, stream = await begun(server, request())
        unload = pb.UnloadModelRequest(name="models/a")
        refused = await failure(server.admin.UnloadModel(unload))
        assert (refused.code, refused.info.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "MODEL_IN_USE",
        )
        served.model.let_go()
        await _rest(stream)
        answer = await server.admin.UnloadModel(unload)
        assert answer.model.state == pb.MODEL_STATE_UNLOADED
        gc.collect()
        assert served.model is None, "something still references it"
        assert [await is_serving(server, name) for name in ("models/a", "")] == [False, True]
        assert (await server.admin.UnloadModel(unload)).model.state == pb.MODEL_STATE_UNLOADED
        generated = await events_of(server.stub.GenerateImage(request()))
        assert kind(generated[-1]) == "completed"
    assert served.num_loads == 2


async def test_a_model_cannot_be_unloaded_while_it_loads():
    served = ServedModel(id="b")
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        loading = server.admin.LoadModel(pb.LoadModelRequest(name="b"))
        await anext(aiter(loading))
        refused = await failure(server.admin.UnloadModel(pb.UnloadModelRequest(name="b")))
        assert refused.info.reason == "MODEL_LOADING"
        loading.cancel()
        served.let_go()
        await eventually(lambda: served.model, timeout_s=5)


async def test_load_model_streams_progress_and_ends_with_the_model():
    served = ServedModel(id="b", size_bytes=100)
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        events = await events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b")))
        *progress, last = events
        assert progress
        assert {one.model_loading.model for one in progress} == {"models/b"}
        assert last.model.name == "models/b"
        again = await events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b-alias")))
        assert [one.WhichOneof("event") for one in again] == ["model"]
    assert served.num_loads == 1


@pytest.mark.parametrize(("name", "reason"), [("", "REQUIRED"), ("none", "MODEL_NOT_FOUND")])
async def test_administration_needs_an_existing_model(name: str, reason: str):
    async with serving_models(ServedModel(id="a")) as server:
        load = server.admin.LoadModel(pb.LoadModelRequest(name=name))
        assert (await failure(events_of(load))).info.reason == reason
        unload = server.admin.UnloadModel(pb.UnloadModelRequest(name=name))
        assert (await failure(unload)).info.reason == reason


@pytest.mark.parametrize(
    "sent", [request(model="b", num_images=99), request(model="b", validate_only=True)]
)
async def test_nothing_is_loaded_for_a_request_that_generates_nothing(
    sent: pb.GenerateImageRequest,
):
    served = ServedModel(id="b")
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        call = server.stub.GenerateImage(sent)
        if sent.validate_only:
            assert [kind(event) async for event in call] == ["accepted"]
        else:
            assert (await failure(events_of(call))).reasons == {"num_images": "OUT_OF_RANGE"}
        assert await state(server, "b") == pb.MODEL_STATE_UNLOADED
    assert served.num_loads == 0


async def test_a_model_without_a_spec_is_loaded_before_a_request_is_accepted():
    served = ServedModel(id="b", is_known=False)
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        unknown = (await server.stub.GetModel(pb.GetModelRequest(name="b"))).model
        assert (unknown.state, unknown.defaults.width) == (pb.MODEL_STATE_UNLOADED, 0)
        checked = server.stub.GenerateImage(request(model="b", validate_only=True))
        assert (await failure(events_of(checked))).info.reason == "MODEL_LOADING"
        refused = server.stub.GenerateImage(request(model="b", num_images=99))
        assert (await failure(events_of(refused))).reasons == {"num_images": "OUT_OF_RANGE"}
        generated = await events_of(server.stub.GenerateImage(request(model="b")))
        assert [kind(generated[0]), kind(generated[-1])] == ["accepted", "completed"]
        assert generated[0].accepted.effective_request.width == 64


async def test_a_request_for_a_model_on_the_hub_is_accepted_before_it_is_downloaded():
    served = ServedModel(id="b", size_bytes=100, is_remote=True)
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        unknown = (await server.stub.GetModel(pb.GetModelRequest(name="b"))).model
        assert unknown.defaults.width == 0, "nothing is downloaded before a request"
        refused = server.stub.GenerateImage(request(model="b", num_images=99))
        assert (await failure(events_of(refused))).reasons == {"num_images": "OUT_OF_RANGE"}
        assert served.num_loads == 0
        _, stream = await begun(server, request(model="b"))
        assert kind(await anext(stream)) == "model_loading"
        served.let_go()
        assert [kind(event) async for event in stream][-1] == "completed"


async def test_requests_waiting_for_a_model_end_when_the_server_drains():
    served = ServedModel(id="b")
    served.hold()
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        _, stream = await begun(server, request(model="b"))
        stopping = asyncio.create_task(server.app.stop(grace_s=5))
        assert (await failure(_rest(stream))).info.reason == "DRAINING"
        served.let_go()
        await stopping


async def test_a_model_is_probed_between_the_steps_of_running_generations():
    order: list[str] = []

    def logged(id_: str) -> FakeModel:
        model = FakeModel(id=id_, call_s=0.002)
        # Larger calls than these are not measured.
        model.faults.append((above_rows(2), raising(torch.OutOfMemoryError)))
        model.faults.append((lambda _call: True, lambda result, _call: order.append(id_) or result))
        return model

    models = [
        ServedModel(id="a", preload=True, make=lambda: logged("a")),
        ServedModel(id="b", make=lambda: logged("b")),
    ]
    async with serving_models(*models, max_rows=None) as server:
        order.clear()
        models[0].model.hold()
        _, running = await begun(server, request(model="a", num_inference_steps=150))
        await eventually(lambda: models[0].model.calls)
        load = asyncio.create_task(events_of(server.admin.LoadModel(pb.LoadModelRequest(name="b"))))
        await eventually(lambda: models[1].model)
        models[0].model.let_go()
        await load
        await _rest(running)
    whole = "".join(order)
    assert whole.count("a") == 150
    assert "b" in whole
    measured = whole[whole.index("b") : whole.rindex("b")]
    # While the other model has steps left, each probe call waits for at most one of them.
    assert "bb" not in measured[: measured.rfind("a") + 1]


def _is_held(server: Serving, id_: str) -> bool:
    return id_ in server.app._engine.models._held


def _waiting(server: Serving) -> list[object]:
    return server.app._engine._register.waiting_for_models


async def _rest(stream: AsyncIterator[pb.GenerateImageResponse]) -> None:
    async for _ in stream:
        pass
