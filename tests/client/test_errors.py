"""Both clients against a scripted server that fails: typed errors and retries."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2 as details

import latentwire
from tests.support.client.scripted_server import Abort, Hang, accepted, completed, image, numbered


async def test_the_time_out_is_the_deadline(client, servicer):
    servicer.script = numbered(accepted(), Hang())
    with pytest.raises(latentwire.DeadlineError) as raised:
        await client.generate("p", timeout_s=0.2)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("code", "reason", "error_type"),
    [
        ("INVALID_ARGUMENT", "INVALID_FIELDS", latentwire.InvalidRequestError),
        ("NOT_FOUND", "MODEL_NOT_FOUND", latentwire.NotFoundError),
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", latentwire.QueueFullError),
        ("RESOURCE_EXHAUSTED", "DEVICE_OUT_OF_MEMORY", latentwire.OutOfMemoryError),
        ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", latentwire.DeadlineError),
        ("CANCELLED", "CANCELLED_BY_REQUEST", latentwire.GenerationCancelled),
        ("UNAVAILABLE", "DRAINING", latentwire.UnavailableError),
        ("UNAUTHENTICATED", "TOKEN_MISSING", latentwire.AuthenticationError),
        ("INTERNAL", "PIPELINE_ERROR", latentwire.InternalServerError),
        ("DATA_LOSS", "NON_FINITE_OUTPUT", latentwire.InternalServerError),
    ],
)
async def test_each_status_has_its_exception(client, servicer, code, reason, error_type):
    info = details.ErrorInfo(reason=reason, metadata={"error_id": "e1"})
    retry = details.RetryInfo()
    retry.retry_delay.FromMilliseconds(2500)
    servicer.script = numbered(
        accepted(), Abort(grpc.StatusCode[code], "the reason", (info, retry))
    )
    with pytest.raises(error_type, match="the reason") as raised:
        await client.generate("p")
    assert type(raised.value) is error_type
    assert raised.value.code is grpc.StatusCode[code]
    assert raised.value.reason == reason
    assert raised.value.metadata == {"error_id": "e1"}
    assert raised.value.retry_after_s == 2.5
    if error_type is latentwire.InternalServerError:
        assert raised.value.error_id == "e1"


async def test_an_error_has_all_violations(client, servicer):
    bad = details.BadRequest()
    bad.field_violations.add(field="width", description="width is 7; allowed: 64 to 512")
    bad.field_violations.add(field="prompt", description="prompt is empty")
    servicer.script = [Abort(grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", (bad,))]
    with pytest.raises(latentwire.InvalidRequestError) as raised:
        await client.generate("")
    assert [violation.field for violation in raised.value.violations] == ["width", "prompt"]
    assert "prompt is empty" in str(raised.value)


async def test_an_error_without_details_is_raised_too(client, servicer):
    servicer.script = [Abort(grpc.StatusCode.UNAVAILABLE, "going down")]
    with pytest.raises(latentwire.UnavailableError, match="going down") as raised:
        await client.generate("p")
    assert raised.value.reason == ""
    assert raised.value.retry_after_s is None


async def test_a_message_over_the_size_limit_is_not_reported_as_a_full_queue(client, servicer):
    data = bytes(5_000_000)
    servicer.script = numbered(accepted(), image(data), completed())
    with pytest.raises(latentwire.LatentwireError) as raised:
        await client.generate("p")
    assert type(raised.value) is latentwire.LatentwireError


async def test_generate_is_never_retried(client, servicer):
    servicer.script = [Abort(grpc.StatusCode.UNAVAILABLE, "down")]
    with pytest.raises(latentwire.UnavailableError):
        await client.generate("p")
    assert len(servicer.requests) == 1


async def test_reads_are_retried_while_unavailable(client, servicer):
    servicer.failure = Abort(grpc.StatusCode.UNAVAILABLE, "down")
    with pytest.raises(latentwire.UnavailableError):
        await client.server_info()
    assert servicer.num_unary_calls == 3


async def test_cancel_is_not_retried(client, servicer):
    servicer.failure = Abort(grpc.StatusCode.UNAVAILABLE, "down")
    with pytest.raises(latentwire.UnavailableError):
        await client.cancel("g1")
    assert servicer.num_unary_calls == 1


async def test_a_refused_connection_is_unavailable():
    async with latentwire.AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(latentwire.UnavailableError):
            await client.generate("p")
