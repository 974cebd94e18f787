"""Errors as HTTP: the only place where they become OpenAI's error object.

Texts of libraries, addresses and paths never get into a message. Pure, apart from building
responses.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentwire_bridge.openai.answers import ErrorAnswer, ErrorType

MIN_RETRY_S: Final = 1
MAX_RETRY_S: Final = 60
MAX_SHOWN_CHARACTERS: Final = 64
INVALID_REQUEST: Final[ErrorType] = "invalid_request_error"
SERVER_ERROR: Final[ErrorType] = "server_error"
CONTENT_POLICY_VIOLATION: Final = "content_policy_violation"
_HTTP_ERRORS: Final = {
    HTTPStatus.NOT_FOUND: ("unknown URL", "unknown_url"),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "this URL does not support this method",
        "method_not_supported",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("the request body is too large", "request_too_large"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a request."""

    param: str
    """The field, by the name that the caller used."""
    message: str
    code: str = "invalid_value"


class ApiError(Exception):
    """A failed request, with everything that goes into its response."""

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
        """Makes an error.

        Args:
            message: For people.
            status: The HTTP status.
            type_: OpenAI's type of error.
            param: The field that is wrong.
            code: A constant for programs.
            retry_after_s: How long to wait before a retry.
            is_final: Whether to stop OpenAI's clients from retrying, which they do by default
                after 408, 409, 429 and every 5xx.
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


def shown(text: str) -> str:
    """Returns a caller's text as messages quote it: in ASCII, and shortened."""
    return ascii(text[:MAX_SHOWN_CHARACTERS])


def invalid_request(problems: Sequence[Problem]) -> ApiError:
    """Returns the error for a wrong request: the first problem's field, and all messages."""
    message = "; ".join(f"'{problem.param}': {problem.message}" for problem in problems)
    return ApiError(message, param=problems[0].param, code=problems[0].code)


def all_withheld() -> ApiError:
    """Returns the error for a generation without any image left."""
    message = "a safety filter withheld every image"
    return ApiError(message, code=CONTENT_POLICY_VIOLATION)


def internal_error(error_id: str) -> ApiError:
    """Returns the error for a fault of the bridge itself."""
    return ApiError(
        f"the bridge failed; see its log for {error_id}",
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        type_=SERVER_ERROR,
        code="bridge_error",
        is_final=True,
    )


def refused_by_http(error: web.HTTPException) -> ApiError:
    """Returns the error for aiohttp's own: unknown route, wrong method, body too large."""
    status = HTTPStatus(error.status)
    message, code = _HTTP_ERRORS.get(status, ("the request is invalid", None))
    allow = error.headers.get("Allow")
    return ApiError(
        message,
        status=status,
        code=code,
        headers={"Allow": allow} if allow else None,
    )


def envelope(error: ApiError) -> ErrorAnswer:
    """Returns OpenAI's error object."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> web.Response:
    """Returns the response: OpenAI's error object, and the headers that its clients obey."""
    response = web.Response(
        status=error.status,
        body=json.dumps(envelope(error)).encode(),
        content_type="application/json",
        headers=error.headers,
    )
    if error.is_final:
        response.headers["x-should-retry"] = "false"
    if error.retry_after_s is not None:
        # OpenAI's clients wait up to 60 s, and do not retry at all beyond 120 s.
        delay_s = min(max(error.retry_after_s, 0.05), MAX_RETRY_S)
        response.headers["Retry-After"] = str(max(MIN_RETRY_S, math.ceil(delay_s)))
        response.headers["retry-after-ms"] = str(math.ceil(delay_s * 1_000))
    return response
