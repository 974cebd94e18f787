"""Generations, models and the server as resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.settings.files import SettingsError
from tests.support.eventually import eventually
from tests.support.fake_faults import above_rows, raising
from tests.support.fakes import FakeModel
from tests.support.server.serving import Serving, error_details, events_of, request, serving
from tests.support.server.source_images import from_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def begun(
    server: Serving, sent: pb.GenerateImageRequest, *, count: int
) -> tuple[list[AsyncIterator[pb.GenerateImageResponse]], list[str]]:
    """Starts generations one after the other."""
    streams = []
    names = []
    for _ in range(count):
        streams.append(aiter(server.stub.GenerateImage(sent)))
        names.append((await anext(streams[-1])).generation)
    return streams, names


async def test_a_generation_can_be_looked_up_from_queue_to_end():
    model = FakeModel()
    model.hold()
    async with serving(model, max_running=1) as server:
        sent = request("a", priority=5, user="me", labels={"k": "v"})
        streams, names = await begun(server, sent, count=3)
        await eventually(lambda: model.calls)

        listed = await server.stub.ListGenerations(pb.ListGenerationsRequest())
        assert [one.name for one in listed.generations] == names
        assert listed.total_count == 3
        assert [one.state for one in listed.generations] == [
            pb.GENERATION_STATE_RUNNING,
            pb.GENERATION_STATE_QUEUED,
            pb.GENERATION_STATE_QUEUED,
        ]
        assert [one.ahead_count for one in listed.generations] == [0, 0, 1]
        last = listed.generations[2]
        assert (last.priority, last.user, dict(last.labels)) == (5, "me", {"k": "v"})
        assert (last.model, last.step_count) == ("models/fake", 4)
        assert last.create_time.ToNanoseconds() > 0
        assert not last.HasField("end_time")

        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert (info.running_count, info.queued_count) == (1, 2)

        model.let_go()
        for stream in streams:
            async for _ in stream:
                pass
        ended = await server.stub.GetGeneration(pb.GetGenerationRequest(name=names[0]))
        assert ended.generation.state == pb.GENERATION_STATE_SUCCEEDED
        assert ended.generation.HasField("end_time")
        assert (ended.generation.step, ended.generation.fraction) == (4, 1.0)


@pytest.mark.parametrize(
    ("sent", "step_count"),
    [
        (request(width=128, height=128, num_inference_steps=4), 6),
        (request(width=64, height=64, num_inference_steps=4, high_noise_frac=0.5), 4),
        (from_image(strength=0.5, num_inference_steps=4), 2),
    ],
    ids=["high-resolution fix", "refiner", "image"],
)
async def test_a_generations_step_count_matches_its_progress(sent, step_count):
    model = FakeModel(refiner=FakeModel(id="refiner"), high_resolution_fix=0.5)
    async with serving(model) as server:
        model.hold()
        stream = aiter(server.stub.GenerateImage(sent))
        name = (await anext(stream)).generation
        (listed,) = (await server.stub.ListGenerations(pb.ListGenerationsRequest())).generations
        model.let_go()
        steps = [one.progress async for one in stream if one.HasField("progress")]
        ended = await server.stub.GetGeneration(pb.GetGenerationRequest(name=name))

    assert {one.step_count for one in (listed, *steps, ended.generation)} == {step_count}
    assert steps[-1].step == ended.generation.step == step_count


async def test_generations_are_listed_in_pages():
    model = FakeModel()
    model.hold()
    async with serving(model) as server:
        _streams, names = await begun(server, request("a"), count=5)
        seen, token = [], ""
        while True:
            page = await server.stub.ListGenerations(
                pb.ListGenerationsRequest(page_size=2, page_token=token)
            )
            assert len(page.generations) <= 2
            seen += [one.name for one in page.generations]
            token = page.next_page_token
            if not token:
                break
        assert seen == names


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (pb.ListGenerationsRequest(page_size=-1), "page_size"),
        (pb.ListGenerationsRequest(page_size=1001), "page_size"),
        (pb.ListGenerationsRequest(page_token="-1"), "page_token"),
        (pb.ListGenerationsRequest(page_token="x"), "page_token"),
        (pb.ListGenerationsRequest(page_token="9" * 5000), "page_token"),
        (pb.ListGenerationsRequest(page_token="٣"), "page_token"),
    ],
)
async def test_a_bad_page_is_refused(server: Serving, sent: pb.ListGenerationsRequest, field: str):
    with pytest.raises(grpc.RpcError) as caught:
        await server.stub.ListGenerations(sent)
    assert set(error_details(caught.value).violations) == {field}


@pytest.mark.parametrize("name", ["generations/nobody", "nobody", "generations/../x", "\n" * 9000])
async def test_an_unknown_generation_is_not_found(server: Serving, name: str):
    for rpc, sent in (
        (server.stub.GetGeneration, pb.GetGenerationRequest(name=name)),
        (server.stub.CancelGeneration, pb.CancelGenerationRequest(name=name)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await rpc(sent)
        refused = error_details(caught.value)
        assert refused.code is grpc.StatusCode.NOT_FOUND
        assert refused.info.reason == "GENERATION_NOT_FOUND"


async def test_a_generation_name_is_required(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await server.stub.GetGeneration(pb.GetGenerationRequest())
    assert error_details(caught.value).reasons == {"name": "REQUIRED"}


async def test_a_model_lists_its_limits_schedulers_and_defaults():
    async with serving(model_aliases="nick, name", max_images=3) as server:
        listed = await server.stub.ListModels(pb.ListModelsRequest())
        (model,) = listed.models
        answer = await server.stub.GetModel(pb.GetModelRequest(name="nick"))
        assert answer.model == model
        default = await server.stub.GetModel(pb.GetModelRequest())
        assert default.model == model
    assert model.name == "models/fake"
    assert model.is_default
    assert model.state == pb.MODEL_STATE_READY
    assert list(model.aliases) == ["fake-alias", "nick", "name"]
    assert model.limits.max_images == 3
    assert (model.limits.max_side, model.limits.side_multiple) == (1024, 8)
    assert [one.id for one in model.schedulers] == ["euler", "euler-a", "heun"]
    assert model.schedulers[2].evaluations_per_step == 2
    assert model.defaults.scheduler == pb.Scheduler(id="euler", sigmas="default")


async def test_an_unknown_model_is_not_found(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await server.stub.GetModel(pb.GetModelRequest(name="models/none"))
    assert error_details(caught.value).info.reason == "MODEL_NOT_FOUND"


async def test_the_operators_limits_replace_the_models():
    async with serving(max_images=1, max_inference_steps=4) as server:
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(server.stub.GenerateImage(request(num_images=2, num_inference_steps=5)))
    assert set(error_details(caught.value).violations) == {"num_images", "num_inference_steps"}


async def test_max_rows_is_probed_before_the_model_is_ready():
    model = FakeModel(call_s=0.002)
    async with serving(model, max_rows=None) as server:
        num_calls = len(model.calls)
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert num_calls > 0
    assert info.max_rows == 64
    assert info.denoiser_call_count == 0


async def test_every_size_of_a_call_is_compiled_before_the_model_is_ready():
    async with serving(FakeModel(backend_name="inductor"), max_rows=6) as server:
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.denoiser_backend == "inductor"
    assert list(info.compiled_shapes) == ["6x4x8x8", "4x4x8x8", "2x4x8x8", "1x4x8x8"]


async def test_a_model_that_cannot_generate_here_prevents_the_start_with_one_line():
    broken = FakeModel(faults=[(above_rows(1), raising(lambda: ValueError("no\nsuch kernel")))])
    with pytest.raises(
        SettingsError, match=r"^model 'fake': cannot generate images here \(ValueError: no\)$"
    ):
        async with serving(broken, max_rows=None):
            pass


async def test_limits_below_the_models_defaults_are_refused_before_probing():
    model = FakeModel()
    with pytest.raises(SettingsError, match="max_inference_steps=1"):
        async with serving(model, max_rows=None, max_inference_steps=1):
            pass
    assert model.calls == []


async def test_a_size_that_does_not_compile_runs_eagerly(caplog: pytest.LogCaptureFixture):
    class Stubborn(FakeModel):
        def prepare(self, num_rows: int) -> None:
            if num_rows == 4:
                raise RuntimeError
            super().prepare(num_rows)

    async with serving(Stubborn(backend_name="inductor"), max_rows=4) as server:
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert list(info.compiled_shapes) == ["2x4x8x8", "1x4x8x8"]
    assert "does not compile model=fake rows=4" in caplog.text


async def test_reproducible_batching_has_a_fixed_number_of_rows():
    async with serving(max_rows=None, batching="reproducible") as server:
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert server.model.calls == []
    assert info.max_rows == 8


async def test_the_server_describes_itself(server: Serving):
    info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.device, info.dtype, info.batching) == ("cpu", "float32", "dynamic")
    assert (info.max_rows, info.max_queued) == (8, 64)
    assert info.max_request_bytes == 64 * 1024 * 1024
    assert not info.draining
    assert info.start_time.ToNanoseconds() > 0
    assert {"torch", "grpcio"} <= set(info.library_versions)


async def test_the_server_counts_its_denoiser_calls_and_their_rows(server: Serving):
    wanted = request(num_images=3, num_inference_steps=4, guidance_scale=5.0)
    await events_of(server.stub.GenerateImage(wanted))
    info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.denoiser_call_count == 4
    assert info.denoiser_row_count == 4 * 6
