"""Failed calls as HTTP errors, and the exceptions that OpenAI's own client raises for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import grpc
import openai
import pytest

from tests.support.bridge.bridging import LEAKS, Answer, bridging
from tests.support.client.scripted_server import (
    Abort,
    accepted,
    completed,
    failure,
    image,
    numbered,
)

Code = grpc.StatusCode


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failed call and its HTTP error."""

    abort: Abort
    status: int
    code: str | None
    raised: type[openai.APIStatusError]
    type_: str = "invalid_request_error"
    message: str | None = None
    """Set where the bridge replaces the server's message."""
    retry_after: str | None = None
    is_final: bool = False
    num_calls: int = 1
    """How often OpenAI's client calls: three times, unless a header forbids retries."""


CASES = {
    "no key": Case(
        abort=failure(Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        status=401,
        code="invalid_api_key",
        raised=openai.AuthenticationError,
        message="the API key is missing or wrong: send it as 'Authorization: Bearer <key>'",
    ),
    "not allowed": Case(
        abort=failure(Code.PERMISSION_DENIED, "FORBIDDEN"),
        status=403,
        code="forbidden",
        raised=openai.PermissionDeniedError,
    ),
    "no such model": Case(
        abort=failure(Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        status=404,
        code="model_not_found",
        raised=openai.NotFoundError,
    ),
    "queue full": Case(
        abort=failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=0.06),
        status=429,
        code="rate_limit_exceeded",
        type_="requests",
        raised=openai.RateLimitError,
        retry_after="1",
        num_calls=3,
    ),
    "does not fit": Case(
        abort=failure(Code.RESOURCE_EXHAUSTED, "DEVICE_OUT_OF_MEMORY"),
        status=400,
        code="device_out_of_memory",
        raised=openai.BadRequestError,
        is_final=True,
    ),
    "deadline": Case(
        abort=failure(Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"),
        status=504,
        code="deadline_too_short",
        type_="server_error",
        raised=openai.InternalServerError,
        is_final=True,
    ),
    "draining": Case(
        abort=failure(Code.UNAVAILABLE, "DRAINING", retry_after_s=0.06),
        status=503,
        code="draining",
        type_="server_error",
        raised=openai.InternalServerError,
        retry_after="1",
        num_calls=3,
    ),
    "id used twice": Case(
        abort=failure(Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
        status=422,
        code="idempotency_key_reused",
        message="this Idempotency-Key belongs to another request; a new request needs a new one",
        raised=openai.UnprocessableEntityError,
        is_final=True,
    ),
    "cancelled": Case(
        abort=failure(Code.CANCELLED, "CANCELLED_BY_REQUEST"),
        status=409,
        code="generation_cancelled",
        raised=openai.ConflictError,
        is_final=True,
    ),
    "not a number": Case(
        abort=failure(Code.DATA_LOSS, "NON_FINITE_OUTPUT"),
        status=500,
        code="non_finite_output",
        type_="server_error",
        raised=openai.InternalServerError,
        is_final=True,
    ),
    "internal": Case(
        abort=failure(Code.INTERNAL, "PIPELINE_ERROR", "its log says more under 17"),
        status=500,
        code="pipeline_error",
        type_="server_error",
        raised=openai.InternalServerError,
        is_final=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_each_failure_has_its_status_envelope_and_headers(scripted_bridge, servicer, name):
    case = CASES[name]
    servicer.script = [case.abort]

    answer = await scripted_bridge.generate()

    assert answer.status == case.status
    assert answer.error["code"] == case.code
    assert answer.error["type"] == case.type_
    assert answer.error["message"] == (case.message or case.abort.message)
    assert answer.headers.get("Retry-After") == case.retry_after
    assert answer.headers.get("x-should-retry") == ("false" if case.is_final else None)


@pytest.mark.parametrize("name", CASES)
async def test_openais_client_raises_its_own_error_and_retries_only_where_it_helps(
    scripted_bridge, servicer, name
):
    case = CASES[name]
    servicer.script = [case.abort]

    async with openai.AsyncOpenAI(base_url=f"{scripted_bridge.url}/v1", api_key="any") as client:
        with pytest.raises(case.raised) as raised:
            await client.images.generate(prompt="a red circle")

    assert raised.value.status_code == case.status
    assert raised.value.code == case.code
    assert raised.value.request_id
    assert (case.message or case.abort.message) in str(raised.value)
    assert len(servicer.requests) == case.num_calls


async def test_all_violations_are_reported_with_openais_field_names(scripted_bridge, servicer):
    servicer.script = [
        failure(
            Code.INVALID_ARGUMENT,
            "INVALID_FIELDS",
            num_images=("OUT_OF_RANGE", "num_images is 9; allowed: 1 to 4"),
            height=("NOT_A_MULTIPLE", "height 100 is no multiple of 8"),
            output__quality=("NOT_APPLICABLE", "no quality"),
            clip_skip=("OUT_OF_RANGE", "clip_skip is 9"),
            scheduler__id=("UNKNOWN_SCHEDULER", "no scheduler 'x'"),
        )
    ]

    answer = await scripted_bridge.generate(sampler="x")

    assert answer.status == 400
    assert answer.error["param"] == "n"
    assert answer.error["code"] == "invalid_value"
    for param in ("'n': n is 9", "'size':", "'output_compression':", "'clip_skip':", "'sampler':"):
        assert param in answer.error["message"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("REQUIRED", "missing_required_parameter"),
        ("UNSUPPORTED_FIELD", "unsupported_parameter"),
        ("PROMPT_REFUSED", "content_policy_violation"),
    ],
)
async def test_the_reason_of_a_violation_becomes_openais_code(
    scripted_bridge, servicer, reason, code
):
    servicer.script = [failure(Code.INVALID_ARGUMENT, reason, loras=(reason, "why"))]

    answer = await scripted_bridge.generate()

    assert answer.error["code"] == code
    assert answer.error["param"] == "loras"


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_a_message_without_a_reason_is_not_passed_on(scripted_bridge, servicer, code):
    text = "Traceback (most recent call last): /srv/secret.py <class 'torch.Tensor'> at 0x7f"
    servicer.script = [Abort(code, text)]

    answer = await scripted_bridge.generate()

    assert answer.error["message"]
    assert "secret" not in answer.data.decode()
    assert not any(leak in answer.data.decode() for leak in LEAKS)


@pytest.mark.parametrize(("retry_after_s", "seconds", "milliseconds"), [
    (0.5, "1", "500"), (7.2, "8", "7200"), (4_000, "60", "60000"), (0, "1", "1000"),
])  # fmt: skip
async def test_retry_after_is_in_whole_seconds_and_at_most_a_minute(
    scripted_bridge, servicer, retry_after_s, seconds, milliseconds
):
    servicer.script = [failure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=retry_after_s)]

    answer = await scripted_bridge.generate()

    assert answer.headers["Retry-After"] == seconds
    assert answer.headers["retry-after-ms"] == milliseconds


async def test_a_corrupt_stream_is_a_server_error(scripted_bridge, servicer):
    wrong = hashlib.sha256(b"another image").digest()
    servicer.script = numbered(accepted(), image(b"image", sha256=wrong), completed())

    answer = await scripted_bridge.generate()

    assert answer.status == 500
    assert answer.headers["x-should-retry"] == "false"
    assert "SHA" not in answer.error["message"]


async def test_withholding_every_image_is_a_policy_violation(scripted_bridge, servicer):
    withheld = image(b"", finish_reason=2, sha256=b"", size_bytes=0)
    servicer.script = numbered(accepted(), withheld, completed())

    answer = await scripted_bridge.generate()

    assert answer.status == 400
    assert answer.error["code"] == "content_policy_violation"


async def test_withheld_images_become_warnings_beside_the_others(scripted_bridge, servicer):
    withheld = image(b"", index=1, finish_reason=2, sha256=b"", size_bytes=0)
    servicer.script = numbered(
        accepted(), image(b"0"), withheld, image(b"2", index=2), completed(3)
    )

    answer = await scripted_bridge.generate(n=3, response_format="url")

    assert answer.status == 200
    assert [datum["seed"] for datum in answer.json["data"]] == [7, 9]
    for datum in answer.json["data"]:
        assert (await scripted_bridge.get(datum["url"].removeprefix(scripted_bridge.url))).data
    assert answer.json["warnings"] == [
        {
            "param": None,
            "code": "content_policy_violation",
            "message": "image 1 was withheld by a safety filter",
            "image_index": 1,
            "seed": 8,
        }
    ]


async def test_an_unreachable_server_is_reported_without_its_address(unused_port):
    async with bridging(f"127.0.0.1:{unused_port()}") as bridge:
        answers: list[Answer] = [
            await bridge.generate(),
            await bridge.get("/v1/models"),
            await bridge.get("/v1/models/dall-e-3"),
            await bridge.get("/readyz"),
        ]

        for answer in answers:
            assert answer.status == 503
            assert answer.error["type"] == "server_error"
            assert int(answer.headers["Retry-After"]) >= 1
            assert not any(leak in answer.data.decode() for leak in (*LEAKS, "127.0.0.1"))
        assert (await bridge.get("/healthz")).status == 200


async def test_an_internal_error_carries_the_id_under_which_it_is_logged(
    scripted_bridge, servicer, caplog, monkeypatch
):
    def failing(*_args: object, **_options: object) -> None:
        text = "at 0x7f00, see /home/me"
        raise RuntimeError(text)

    monkeypatch.setattr("latentwire_bridge.routes.images.generate_options", failing)

    answer = await scripted_bridge.generate()

    assert answer.status == 500
    assert answer.headers["x-should-retry"] == "false"
    error_id = answer.headers["x-request-id"]
    assert error_id in answer.error["message"]
    assert "0x7f00" not in answer.data.decode()
    assert any(error_id in record.getMessage() and record.exc_info for record in caplog.records)
