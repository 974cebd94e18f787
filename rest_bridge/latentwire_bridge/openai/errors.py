"""What goes wrong, as HTTP: the only place where an error becomes a status and OpenAI's envelope.

Pure but for building the response. Texts of libraries, addresses and paths never get in here: a
message is either ours or that of a server which named its reason.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import grpc
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentwire import LatentwireError
    from latentwire_bridge.openai.answers import ErrorAnswer, ErrorType

MIN_RETRY_S: Final = 1
MAX_RETRY_S: Final = 60
INVALID_REQUEST: Final[ErrorType] = "invalid_request_error"
SERVER_ERROR: Final[ErrorType] = "server_error"
CONTENT_POLICY_VIOLATION: Final = "content_policy_violation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a request."""

    param: str
    """The field, by the name under which the caller sent it."""
    message: str
    code: str = "invalid_value"


class ApiError(Exception):
    """A request ended without its result; carries everything that the caller is told."""

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        type_: ErrorType = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        is_final: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the parts of the envelope.

        Args:
            message: For people.
            status: The HTTP status.
            type_: OpenAI's kind of error.
            param: The field that is to blame.
            code: A constant for programs.
            retry_after_s: When to try again.
            is_final: Tells OpenAI's client not to repeat the request, which it otherwise does
                after 408, 409, 429 and everything from 500 on.
            headers: Further headers, such as ``Allow``.
        """
        super().__init__(message)
        self.message = message
        self.status = int(status)
        self.type = type_
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.is_final = is_final
        self.headers = dict(headers or {})


def invalid_request(problems: Sequence[Problem]) -> ApiError:
    """Returns the refusal that blames the first problem's field and tells about all of them."""
    message = "; ".join(f"'{problem.param}': {problem.message}" for problem in problems)
    return ApiError(message, param=problems[0].param, code=problems[0].code)


def all_withheld() -> ApiError:
    """Returns how it is told that no image is left to show."""
    message = "a safety filter withheld every image"
    return ApiError(message, code=CONTENT_POLICY_VIOLATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """How one kind of failed call is told."""

    status: int
    type_: ErrorType = INVALID_REQUEST
    code: str | None = None
    """None: the server's reason, in lower case."""
    message: str
    """Said when the server named no reason, so that its text may be anybody's."""
    is_final: bool = False
    is_temporary: bool = False
    is_ours: bool = False
    """Whether the message is said even when the server has one: its words are not HTTP's."""


_INTERNAL: Final = _Answer(
    status=500, type_=SERVER_ERROR, message="the image server failed", is_final=True
)
_UNREADABLE: Final = _Answer(
    status=400, message="the image server cannot serve this request", is_final=True
)
_CONFLICT: Final = _Answer(
    status=409, message="the request collides with another one", is_final=True
)
_ANSWERS_BY_CODE: Final[Mapping[grpc.StatusCode, _Answer]] = {
    grpc.StatusCode.INVALID_ARGUMENT: _Answer(
        status=400, code="invalid_value", message="the request is not valid"
    ),
    grpc.StatusCode.OUT_OF_RANGE: _UNREADABLE,
    grpc.StatusCode.FAILED_PRECONDITION: _UNREADABLE,
    grpc.StatusCode.UNIMPLEMENTED: _UNREADABLE,
    grpc.StatusCode.UNAUTHENTICATED: _Answer(
        status=401,
        code="invalid_api_key",
        message="the API key is missing or wrong: send it as 'Authorization: Bearer <key>'",
        is_ours=True,
    ),
    grpc.StatusCode.PERMISSION_DENIED: _Answer(
        status=403, message="this API key is not allowed to do this"
    ),
    grpc.StatusCode.NOT_FOUND: _Answer(status=404, message="there is no such thing"),
    grpc.StatusCode.ALREADY_EXISTS: _CONFLICT,
    grpc.StatusCode.CANCELLED: _Answer(
        status=409,
        code="generation_cancelled",
        message="the generation was cancelled",
        is_final=True,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _UNREADABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: _Answer(
        status=504,
        type_=SERVER_ERROR,
        message="the images were not done in the time allowed",
        is_final=True,
    ),
    grpc.StatusCode.UNAVAILABLE: _Answer(
        status=503,
        type_=SERVER_ERROR,
        message="the image server cannot be reached just now",
        is_temporary=True,
    ),
    grpc.StatusCode.DATA_LOSS: _INTERNAL,
    grpc.StatusCode.INTERNAL: _INTERNAL,
    grpc.StatusCode.UNKNOWN: _INTERNAL,
}
_STILL_DRAWN: Final = _Answer(
    status=504,
    type_=SERVER_ERROR,
    code="still_drawing",
    message="not done in the time allowed, and still being drawn: ask again with the same"
    " Idempotency-Key",
    is_temporary=True,
    is_ours=True,
)
_ANSWERS_BY_REASON: Final[Mapping[str, _Answer]] = {
    "MODEL_NOT_FOUND": _Answer(status=404, message="there is no such model"),
    # It will not fit later either.
    "DEVICE_OUT_OF_MEMORY": _Answer(
        status=400, message="the images do not fit the device's memory", is_final=True
    ),
    # As draft-ietf-httpapi-idempotency-key-header has it.
    "REQUEST_ID_REUSED": _Answer(
        status=422,
        code="idempotency_key_reused",
        message="this Idempotency-Key belongs to another request; a new request needs a new one",
        is_final=True,
        is_ours=True,
    ),
    "MODEL_FAILED": _Answer(
        status=503, type_=SERVER_ERROR, message="the model could not be loaded", is_final=True
    ),
    "QUEUE_FULL": _Answer(
        status=429,
        type_="requests",
        code="rate_limit_exceeded",
        message="too many generations wait",
        is_temporary=True,
    ),
    "RATE_LIMITED": _Answer(
        status=429,
        type_="requests",
        code="rate_limit_exceeded",
        message="too many requests",
        is_temporary=True,
    ),
}
_PARAMS_BY_REASON: Final[Mapping[str, str]] = {
    "MODEL_NOT_FOUND": "model",
    "REQUEST_ID_REUSED": "Idempotency-Key",
}
# The contract's words for what OpenAI names otherwise.
_PARAMS_BY_FIELD: Final[Mapping[str, str]] = {
    "width": "size",
    "height": "size",
    "num_images": "n",
    "events.preview_interval_steps": "partial_images",
    "output.quality": "output_compression",
    "output.format": "output_format",
    "scheduler.id": "scheduler",
    "scheduler.sigmas": "scheduler",
    "image_to_image": "image",
    "image_to_image.image": "image",
    "image_to_image.strength": "strength",
    "inpainting": "mask",
    "inpainting.image": "image",
    "inpainting.mask": "mask",
    "inpainting.strength": "strength",
}


SERVER_STATUSES: Final = frozenset(
    answer.status for answer in (*_ANSWERS_BY_CODE.values(), *_ANSWERS_BY_REASON.values())
)
"""What a request may come to that the server has to do with."""
_CODES_BY_VIOLATION: Final[Mapping[str, str]] = {
    "REQUIRED": "missing_required_parameter",
    "UNSUPPORTED_FIELD": "unsupported_parameter",
    "PROMPT_REFUSED": CONTENT_POLICY_VIOLATION,
}


def api_error(
    error: LatentwireError,
    *,
    sent_names: Mapping[str, str] | None = None,
    goes_on: bool = False,
) -> ApiError:
    """Returns how a failed call is told.

    Args:
        error: What the call ended with.
        sent_names: The names under which the caller sent fields that have several.
        goes_on: Whether a deadline ended the call only, and a repeat finds the generation.
    """
    if error.violations:
        return invalid_request(_problems(error, sent_names or {}))
    answer = _ANSWERS_BY_REASON.get(error.reason)
    if answer is None:
        # An error without a code is this side's own: the stream broke the contract's rules.
        answer = _ANSWERS_BY_CODE.get(error.code, _INTERNAL) if error.code else _INTERNAL
    if goes_on and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        answer = _STILL_DRAWN
    return ApiError(
        error.message if error.reason and not answer.is_ours else answer.message,
        status=answer.status,
        type_=answer.type_,
        param=_PARAMS_BY_REASON.get(error.reason),
        code=answer.code or error.reason.lower() or None,
        retry_after_s=(error.retry_after_s or MIN_RETRY_S) if answer.is_temporary else None,
        is_final=answer.is_final,
    )


def param_of(field: str) -> str:
    """Returns OpenAI's name for a field of the contract."""
    return _PARAMS_BY_FIELD.get(field, field)


def _problems(error: LatentwireError, sent_names: Mapping[str, str]) -> list[Problem]:
    problems = []
    for violation in error.violations:
        param = sent_names.get(violation.field)
        if param is None:
            # Of a list, the whole.
            param = param_of(violation.field.partition("[")[0])
            param = sent_names.get(param, param)
        code = _CODES_BY_VIOLATION.get(violation.reason, "invalid_value")
        message = violation.description
        if "." in violation.field:
            # The contract's own words, such as image_to_image.image, tell an OpenAI user nothing.
            message = message.replace(violation.field, param)
        problems.append(Problem(param=param, message=message, code=code))
    return problems


def internal_error(error_id: str) -> ApiError:
    """Returns how a fault of the bridge itself is told."""
    return ApiError(
        f"the bridge failed; its log says more under {error_id}",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        type_=SERVER_ERROR,
        code="bridge_error",
        is_final=True,
    )


def refused_by_http(error: web.HTTPException) -> ApiError:
    """Returns how aiohttp's own refusals are told: no such route, wrong method, body too large."""
    messages = {
        HTTPStatus.NOT_FOUND: "there is nothing at this URL",
        HTTPStatus.METHOD_NOT_ALLOWED: "this URL does not take this method",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the request body is too large",
    }
    codes = {
        HTTPStatus.NOT_FOUND: "unknown_url",
        HTTPStatus.METHOD_NOT_ALLOWED: "method_not_supported",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    }
    status = HTTPStatus(error.status)
    allow = error.headers.get("Allow")
    return ApiError(
        messages.get(status, "the request cannot be served as it is"),
        status=status,
        code=codes.get(status),
        headers={"Allow": allow} if allow else None,
    )


def envelope(error: ApiError) -> ErrorAnswer:
    """Returns OpenAI's form of an error."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> web.Response:
    """Returns the response: OpenAI's envelope, and the headers that steer its clients."""
    response = web.Response(
        status=error.status,
        body=json.dumps(envelope(error)).encode(),
        content_type="application/json",
        headers=error.headers,
    )
    if error.is_final:
        response.headers["x-should-retry"] = "false"
    if error.retry_after_s is not None:
        # OpenAI's clients wait up to 60 s and beyond 120 s do not try again at all.
        delay_s = min(max(error.retry_after_s, 0.05), MAX_RETRY_S)
        response.headers["Retry-After"] = str(max(MIN_RETRY_S, math.ceil(delay_s)))
        response.headers["retry-after-ms"] = str(math.ceil(delay_s * 1_000))
    return response
