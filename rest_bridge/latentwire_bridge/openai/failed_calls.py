"""Failed gRPC calls as HTTP errors: the only place where a gRPC status becomes an HTTP status.

A message is either the bridge's own or that of a server that named its reason: other texts may come
from anywhere. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from latentwire_bridge.openai.errors import (
    CONTENT_POLICY_VIOLATION,
    INVALID_REQUEST,
    MIN_RETRY_S,
    SERVER_ERROR,
    ApiError,
    Problem,
    invalid_request,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import LatentwireError
    from latentwire_bridge.openai.answers import ErrorType


@dataclass(frozen=True, slots=True, kw_only=True)
class _Translation:
    """The HTTP side of a failed gRPC call."""

    status: int
    type_: ErrorType = INVALID_REQUEST
    code: str | None = None
    """None: the server's reason, in lower case."""
    message: str
    """Used when the server named no reason: then its text may come from anywhere."""
    is_final: bool = False
    is_temporary: bool = False
    replaces_message: bool = False
    """Whether to use the message even if the server has one, whose words would not fit HTTP."""


_INTERNAL: Final = _Translation(
    status=500, type_=SERVER_ERROR, message="the image server failed", is_final=True
)
_UNREADABLE: Final = _Translation(
    status=400, message="the image server cannot serve this request", is_final=True
)
_CONFLICT: Final = _Translation(
    status=409, message="the request conflicts with another one", is_final=True
)
_TRANSLATIONS_BY_CODE: Final[Mapping[grpc.StatusCode, _Translation]] = {
    grpc.StatusCode.INVALID_ARGUMENT: _Translation(
        status=400, code="invalid_value", message="the request is invalid"
    ),
    grpc.StatusCode.OUT_OF_RANGE: _UNREADABLE,
    grpc.StatusCode.FAILED_PRECONDITION: _UNREADABLE,
    grpc.StatusCode.UNIMPLEMENTED: _UNREADABLE,
    grpc.StatusCode.UNAUTHENTICATED: _Translation(
        status=401,
        code="invalid_api_key",
        message="the API key is missing or wrong: send it as 'Authorization: Bearer <key>'",
        replaces_message=True,
    ),
    grpc.StatusCode.PERMISSION_DENIED: _Translation(
        status=403, message="this API key is not allowed to do this"
    ),
    grpc.StatusCode.NOT_FOUND: _Translation(status=404, message="the resource does not exist"),
    grpc.StatusCode.ALREADY_EXISTS: _CONFLICT,
    grpc.StatusCode.CANCELLED: _Translation(
        status=409,
        code="generation_cancelled",
        message="the generation was cancelled",
        is_final=True,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: _UNREADABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: _Translation(
        status=504,
        type_=SERVER_ERROR,
        message="the images were not finished in time",
        is_final=True,
    ),
    grpc.StatusCode.UNAVAILABLE: _Translation(
        status=503,
        type_=SERVER_ERROR,
        message="the image server cannot be reached at the moment",
        is_temporary=True,
    ),
    grpc.StatusCode.DATA_LOSS: _INTERNAL,
    grpc.StatusCode.INTERNAL: _INTERNAL,
    grpc.StatusCode.UNKNOWN: _INTERNAL,
}
_STILL_RUNNING: Final = _Translation(
    status=504,
    type_=SERVER_ERROR,
    code="still_drawing",
    message="the images were not finished in time; generation continues: send the request again"
    " with the same Idempotency-Key",
    is_temporary=True,
    replaces_message=True,
)
_TRANSLATIONS_BY_REASON: Final[Mapping[str, _Translation]] = {
    "MODEL_NOT_FOUND": _Translation(status=404, message="the model does not exist"),
    # Waiting does not help.
    "DEVICE_OUT_OF_MEMORY": _Translation(
        status=400, message="the images do not fit into the device's memory", is_final=True
    ),
    # As in draft-ietf-httpapi-idempotency-key-header.
    "REQUEST_ID_REUSED": _Translation(
        status=422,
        code="idempotency_key_reused",
        message="this Idempotency-Key belongs to another request; a new request needs a new one",
        is_final=True,
        replaces_message=True,
    ),
    "MODEL_FAILED": _Translation(
        status=503, type_=SERVER_ERROR, message="the model could not be loaded", is_final=True
    ),
    "QUEUE_FULL": _Translation(
        status=429,
        type_="requests",
        code="rate_limit_exceeded",
        message="the queue is full",
        is_temporary=True,
    ),
    "RATE_LIMITED": _Translation(
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
# The contract's fields whose OpenAI names differ.
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
    translation.status
    for translation in (*_TRANSLATIONS_BY_CODE.values(), *_TRANSLATIONS_BY_REASON.values())
)
"""The statuses that a failed gRPC call can become."""
_CODES_BY_VIOLATION: Final[Mapping[str, str]] = {
    "REQUIRED": "missing_required_parameter",
    "UNSUPPORTED_FIELD": "unsupported_parameter",
    "PROMPT_REFUSED": CONTENT_POLICY_VIOLATION,
}


def api_error(
    error: LatentwireError,
    *,
    sent_names: Mapping[str, str] | None = None,
    continues: bool = False,
) -> ApiError:
    """Returns the HTTP error for a failed call.

    Args:
        error: The call's error.
        sent_names: The names that the caller used for fields with several names.
        continues: Whether the generation outlives its call's deadline, so that a retry finds it.
    """
    if error.violations:
        return invalid_request(_problems(error, sent_names or {}))
    translation = _TRANSLATIONS_BY_REASON.get(error.reason)
    if translation is None:
        # Errors without a code come from the client: the stream broke the contract's rules.
        translation = _TRANSLATIONS_BY_CODE.get(error.code, _INTERNAL) if error.code else _INTERNAL
    if continues and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        translation = _STILL_RUNNING
    return ApiError(
        error.message if error.reason and not translation.replaces_message else translation.message,
        status=translation.status,
        type_=translation.type_,
        param=_PARAMS_BY_REASON.get(error.reason),
        code=translation.code or error.reason.lower() or None,
        retry_after_s=(error.retry_after_s or MIN_RETRY_S) if translation.is_temporary else None,
        is_final=translation.is_final,
    )


def param_of(field: str) -> str:
    """Returns OpenAI's name for a field of the contract."""
    return _PARAMS_BY_FIELD.get(field, field)


def _problems(error: LatentwireError, sent_names: Mapping[str, str]) -> list[Problem]:
    problems = []
    for violation in error.violations:
        param = sent_names.get(violation.field)
        if param is None:
            # Items of a list are reported as the whole list.
            param = param_of(violation.field.partition("[")[0])
            param = sent_names.get(param, param)
        code = _CODES_BY_VIOLATION.get(violation.reason, "invalid_value")
        message = violation.description
        if violation.field not in ("width", "height"):
            # OpenAI's users do not know the contract's names, such as image_to_image.image; but
            # 'size' would not say which of the sides is wrong.
            message = message.replace(violation.field, param)
        problems.append(Problem(param=param, message=message, code=code))
    return problems
