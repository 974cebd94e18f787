"""Requests that are refused over the wire, and the errors they get."""

from __future__ import annotations

import grpc
import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.engine import errors
from latentwire_server.rpc.status import failure_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import (
    ErrorDetails,
    Serving,
    error_details,
    events_of,
    kind,
    request,
    serving,
)

PICTURE = pb.InputImage(data=b"x")


async def refusal(server: Serving, sent: pb.GenerateImageRequest) -> ErrorDetails:
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(sent))
    assert server.model.calls == []
    return error_details(caught.value)


async def test_an_unknown_adapter_is_refused_with_its_position(server: Serving):
    refused = await refusal(server, request(loras=[pb.Lora(id="../x")]))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reasons == {"loras[0].id": "UNKNOWN_LORA"}


async def test_a_prompt_with_a_word_of_the_operators_list_is_refused_before_any_work(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# ours\nScunthorpe\ntwo words  # a phrase\n")
    async with serving(refused_words_file=words) as server:
        for prompt in ("a SCUNTHORPE at night", "(scunthorpe:1.2)"):
            for validate_only in (False, True):
                refused = await refusal(server, request(prompt, validate_only=validate_only))
                assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
                assert refused.info.reason == "PROMPT_REFUSED"
                assert refused.reasons == {"prompt": "PROMPT_REFUSED"}
                assert "'scunthorpe'" in refused.message
                assert "two" not in refused.message
        assert server.model.encoded_prompts == []
        # Negative prompts may contain the word.
        events = await events_of(
            server.stub.GenerateImage(request("scunthorpes", negative_prompt="scunthorpe"))
        )
        assert kind(events[-1]) == "completed"


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (request(output=pb.Output(format=99)), "output.format"),
        (request(events=pb.Events(preview_method=99)), "events.preview_method"),
        (request(disconnect_policy=99), "disconnect_policy"),
    ],
)
async def test_an_unknown_enum_value_is_refused(
    server: Serving, sent: pb.GenerateImageRequest, field: str
):
    assert (await refusal(server, sent)).reasons == {field: "UNKNOWN_VALUE"}


async def test_all_violations_arrive_even_when_there_are_very_many(server: Serving):
    sent = pb.GenerateImageRequest(
        width=-1,
        height=77,
        num_images=99,
        seed=-1,
        num_inference_steps=9_999,
        guidance_scale=float("inf"),
        scheduler=pb.Scheduler(id="\n" * 500),
        clip_skip=99,
        output=pb.Output(quality=1_000, max_data_bytes=1),
        events=pb.Events(
            progress_interval_steps=-1, preview_interval_steps=-1, preview_max_side=-1
        ),
        priority=10_000,
        user="x" * 1_000,
        labels={"\n" * 70 + str(i): "\n" * 1_000 for i in range(200)},
        request_id="x",
        loras=[pb.Lora(id="x")],
        image_to_image=pb.ImageToImage(),
        disconnect_policy=pb.DISCONNECT_POLICY_CONTINUE,
        resume_after_sequence=4,
    )
    refused = await refusal(server, sent)
    assert refused.info.reason == "INVALID_FIELDS"
    assert set(refused.violations) == {
        "width", "height", "num_images", "seed", "num_inference_steps", "guidance_scale",
        "scheduler.id", "clip_skip", "output.quality", "output.max_data_bytes",
        "events.progress_interval_steps", "events.preview_interval_steps",
        "events.preview_max_side", "priority", "user", "labels", "request_id", "loras[0].id",
        "image_to_image.image", "disconnect_policy", "resume_after_sequence",
    }  # fmt: skip


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(server: Serving):
    refused = await refusal(server, request(model="models/../../etc/passwd"))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert refused.info.reason == "MODEL_NOT_FOUND"
    assert "fake" in refused.message


async def test_requests_get_a_retry_delay_while_the_model_loads():
    async with serving(loads=False) as server:
        refused = await refusal(server, request())
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert refused.info.reason == "MODEL_LOADING"
        assert refused.retry_after_s > 0
        models = await server.stub.ListModels(pb.ListModelsRequest())
        assert [one.state for one in models.models] == [pb.MODEL_STATE_LOADING]


async def test_a_full_queue_answers_with_a_retry_delay():
    model = FakeModel()
    model.hold()
    async with serving(model, max_queued=1, max_running=1) as server:
        calls = [server.stub.GenerateImage(request(f"prompt {number}")) for number in range(2)]
        streams = [aiter(call) for call in calls]
        for stream in streams:
            assert kind(await anext(stream)) == "accepted"
        await eventually(lambda: model.calls)
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(server.stub.GenerateImage(request("one too many")))
        refused = error_details(caught.value)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.info.reason == "QUEUE_FULL"
        assert refused.retry_after_s > 0
        model.let_go()
        for stream in streams:
            assert kind([response async for response in stream][-1]) == "completed"
    assert model.calls_with("one too many") == []


async def test_a_generation_that_turns_to_nan_is_an_error_and_not_a_black_image():
    model = FakeModel()
    model.decode_faults.append((lambda _: True, lambda image, *_: image * float("nan")))
    async with serving(model) as server:
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(server.stub.GenerateImage(request()))
    refused = error_details(caught.value)
    assert refused.code is grpc.StatusCode.DATA_LOSS
    assert refused.info.reason == "NON_FINITE_OUTPUT"


async def test_an_internal_failure_reveals_only_an_error_id(
    caplog: pytest.LogCaptureFixture,
):
    model = FakeModel()
    secret = RuntimeError("/home/secret/path <object at 0x7f00>")
    model.scheduler_faults[("euler", 1)] = secret
    async with serving(model) as server:
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(server.stub.GenerateImage(request()))
    refused = error_details(caught.value)
    assert refused.code is grpc.StatusCode.INTERNAL
    assert refused.info.metadata["error_id"] in caplog.text
    assert "secret" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "code", "reason", "heals"),
    [
        (errors.Cancelled(), "CANCELLED", "CANCELLED_BY_REQUEST", False),
        (errors.DeadlinePassed(), "DEADLINE_EXCEEDED", "DEADLINE_PASSED", False),
        (
            errors.DeadlineTooShort(needed_s=2.0, remaining_s=1.0),
            "DEADLINE_EXCEEDED",
            "DEADLINE_TOO_SHORT",
            False,
        ),
        (errors.SlowReader(send_timeout_s=1.0), "DEADLINE_EXCEEDED", "SLOW_READER", False),
        (
            errors.DeviceOutOfMemory(width=8, height=8, num_images=1),
            "RESOURCE_EXHAUSTED",
            "DEVICE_OUT_OF_MEMORY",
            False,
        ),
        (errors.Draining(retry_after_s=3.0), "UNAVAILABLE", "DRAINING", True),
        (errors.DeviceFailed(), "UNAVAILABLE", "DEVICE_FAILED", True),
        (errors.PipelineFailed(error_id="x"), "INTERNAL", "PIPELINE_ERROR", False),
        (ZeroDivisionError("secret"), "INTERNAL", "PIPELINE_ERROR", False),
        (errors.CallerError(), "INTERNAL", "PIPELINE_ERROR", False),
    ],
)
def test_every_error_has_its_status(error: Exception, code: str, reason: str, heals: bool):
    failure = failure_of(error)
    assert failure.code.name == code
    assert failure.reason == reason
    assert (failure.retry_after_s is not None) is heals
    assert "secret" not in failure.message


def test_every_domain_error_has_its_own_status():
    def leaves(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return {kind} if not below else set().union(*(leaves(one) for one in below))

    samples = {
        "violations": (), "name": "", "known": (), "needed_s": 0.0, "remaining_s": 0.0,
        "max_queued": 0, "retry_after_s": 0.0, "width": 0, "height": 0, "num_images": 0,
        "send_timeout_s": 0.0, "step": 0, "error_id": "", "reason": "TOKEN_MISSING",
        "request_id": "", "service": "", "generation_count": 0, "needed_bytes": 0,
        "budget_bytes": 0, "id": "",
    }  # fmt: skip
    kinds = {
        error
        for error in leaves(errors.GenerationError)
        if error.__module__.startswith("latentwire_server")
    }
    assert len(kinds) >= 14
    for error in kinds:
        names = getattr(error, "__dataclass_fields__", {})
        failure = failure_of(error(**{name: samples[name] for name in names}))
        if error is not errors.PipelineFailed:
            assert failure.reason != "PIPELINE_ERROR", error


async def test_too_many_steps_for_a_scheduler_are_refused_before_queueing(
    server: Serving, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        message = "secret"
        raise ValueError(message)

    monkeypatch.setattr(server.model, "create_scheduler", refuse)
    refused = await refusal(server, request(num_inference_steps=60))
    assert refused.violations == {
        "num_inference_steps": "scheduler euler with sigmas default cannot take 60 steps"
    }
