"""What a call can end with, as exceptions, and how a gRPC status becomes one of them.

The only module that reads ``google.rpc`` details. Pure: no I/O, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is wrong with a request."""

    field: str
    """Path of the request's field, such as ``"output.quality"``."""
    reason: str
    """UPPER_SNAKE constant, such as ``"OUT_OF_RANGE"``; empty when the server names none."""
    description: str
    """For people: the value and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """What a server says about an error besides its message."""

    code: grpc.StatusCode | None = None
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None


class LatentwireError(Exception):
    """A call ended without what was asked for. The base of all errors of this package.

    Attributes:
        message: For people, from the server.
        code: The gRPC status code; None when this client found the error.
        reason: UPPER_SNAKE constant such as ``"QUEUE_FULL"``; empty when the server gave none.
        metadata: The reason's data, such as ``{"max_queued": "64"}``.
        violations: What is wrong with the request, all of it; mostly empty.
        retry_after_s: When to try again, in seconds; None when waiting does not help.
    """

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        details = details or ErrorDetails()
        self.message = message
        self.code = details.code
        self.reason = details.reason
        self.metadata = dict(details.metadata)
        self.violations = details.violations
        self.retry_after_s = details.retry_after_s

    def __str__(self) -> str:
        """Returns the message, and each violation that it does not already quote."""
        lines = [self.message]
        lines += [
            f"{violation.field}: {violation.description}"
            for violation in self.violations
            if violation.description not in self.message
        ]
        return "\n".join(lines)


class InvalidRequestError(LatentwireError):
    """The request breaks rules; ``violations`` names all of them."""


class NotFoundError(LatentwireError):
    """There is no such model or generation, or it is somebody else's."""


class AuthenticationError(LatentwireError):
    """The API key is missing, wrong, or not allowed to do this."""


class QueueFullError(LatentwireError):
    """As many generations wait as may wait; try again after ``retry_after_s``."""


class OutOfMemoryError(LatentwireError):
    """The generation does not fit the device even alone."""


class DeadlineError(LatentwireError):
    """The time-out passed, or the server saw that it could not be met."""


class GenerationCancelled(LatentwireError):
    """Somebody cancelled the generation."""


class UnavailableError(LatentwireError):
    """The server cannot be reached or is shutting down, or the model cannot be had."""


class ImageFilteredError(LatentwireError):
    """A safety filter of the server withheld the image, so that it has no file."""


class InternalServerError(LatentwireError):
    """The server failed; ``error_id`` is in its log."""

    @property
    def error_id(self) -> str:
        """What to look for in the server's log; empty when the server gave none."""
        return self.metadata.get("error_id", "")


class CorruptStreamError(LatentwireError):
    """The stream broke its own rules: a gap, a wrong size or a wrong checksum."""


_ERRORS_BY_CODE: Final[Mapping[grpc.StatusCode, type[LatentwireError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFullError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: GenerationCancelled,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.INTERNAL: InternalServerError,
    grpc.StatusCode.DATA_LOSS: InternalServerError,
    grpc.StatusCode.UNKNOWN: InternalServerError,
}


_ERRORS_BY_REASON: Final[Mapping[str, type[LatentwireError]]] = {
    "DEVICE_OUT_OF_MEMORY": OutOfMemoryError,
    "MODEL_FAILED": UnavailableError,
    "MODEL_IN_USE": UnavailableError,
}


class _FailedCall(Protocol):
    """What a raised ``grpc.RpcError`` offers, from a sync channel and from an asyncio one."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def error_from_rpc(rpc_error: grpc.RpcError) -> LatentwireError:
    """Returns the exception for a failed call."""
    call = cast("_FailedCall", rpc_error)
    code = call.code()
    details = _read_details(code, call.trailing_metadata() or ())
    error_type = _ERRORS_BY_REASON.get(details.reason) or _ERRORS_BY_CODE.get(code, LatentwireError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not details.reason:
        # gRPC itself uses this code for a message over a limit, which no waiting heals.
        error_type = LatentwireError
    text = call.details() or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details.reason:
        # gRPC ended the call itself, in words of its own.
        text = "the time-out passed before the answer was there"
    return error_type(text, details)


def _read_details(
    code: grpc.StatusCode, metadata: Iterable[tuple[str, str | bytes]]
) -> ErrorDetails:
    status = status_pb2.Status()
    for key, value in metadata:
        if key == _STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                status.Clear()
    info = _detail(status, error_details_pb2.ErrorInfo())
    bad_request = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo())
    return ErrorDetails(
        code=code,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=tuple(
            Violation(
                field=violation.field,
                # Newer than the oldest googleapis-common-protos that we support.
                reason=getattr(violation, "reason", ""),
                description=violation.description,
            )
            for violation in bad_request.field_violations
        ),
        retry_after_s=(
            retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            if retry.HasField("retry_delay")
            else None
        ),
    )


def _detail(status: status_pb2.Status, detail: MessageT) -> MessageT:
    """Fills ``detail`` from the status; leaves it empty when the status has none of its kind."""
    for packed in status.details:
        if packed.Is(detail.DESCRIPTOR):
            try:
                packed.Unpack(detail)
            except DecodeError:
                detail.Clear()
    return detail
