"""The exceptions of the client, and the mapping from a gRPC status to one of them.

The only module that reads ``google.rpc`` details. No I/O; safe on any thread.
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
    """One rule that a request breaks."""

    field: str
    """Path of the field in the request, such as ``"output.quality"``."""
    reason: str
    """UPPER_SNAKE constant such as ``"OUT_OF_RANGE"``; empty if the server gave none."""
    description: str
    """Text for people: the value and the allowed values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """The data of an error besides its message."""

    code: grpc.StatusCode | None = None
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None


class LatentwireError(Exception):
    """A call failed. The base class of all errors of this package.

    Attributes:
        message: Text for people, from the server.
        code: The gRPC status code; None if the client itself detected the error.
        reason: UPPER_SNAKE constant such as ``"QUEUE_FULL"``; empty if the server gave none.
        metadata: Data that belongs to the reason, such as ``{"max_queued": "64"}``.
        violations: All rules that the request breaks; empty unless it is invalid.
        retry_after_s: When to try again, in seconds; None if waiting does not help.
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
        """Returns the message, and every violation that the message does not quote."""
        lines = [self.message]
        lines += [
            f"{violation.field}: {violation.description}"
            for violation in self.violations
            if violation.description not in self.message
        ]
        return "\n".join(lines)


class InvalidRequestError(LatentwireError):
    """The request is invalid; ``violations`` lists every reason."""


class NotFoundError(LatentwireError):
    """There is no such model or generation, or it belongs to another caller."""


class AuthenticationError(LatentwireError):
    """The API key is missing or wrong, or does not permit the call."""


class QueueFullError(LatentwireError):
    """The server's queue is full; try again after ``retry_after_s`` seconds."""


class OutOfMemoryError(LatentwireError):
    """The generation does not fit into the device's memory, even on its own."""


class DeadlineError(LatentwireError):
    """The deadline passed, or the server found that it could not be met."""


class GenerationCancelled(LatentwireError):
    """The generation was cancelled."""


class UnavailableError(LatentwireError):
    """The server is unreachable or shutting down, or the model is unavailable."""


class ImageFilteredError(LatentwireError):
    """The server's safety filter withheld the image, so there is no file."""


class InternalServerError(LatentwireError):
    """The server failed; its log has details under ``error_id``."""

    @property
    def error_id(self) -> str:
        """The id of the error in the server's log; empty if the server gave none."""
        return self.metadata.get("error_id", "")


class CorruptStreamError(LatentwireError):
    """The stream is damaged: an event is missing, or a size or checksum is wrong."""


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
    """The interface of a raised ``grpc.RpcError``, sync or asyncio."""

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
        # gRPC itself uses this code for messages over a size limit; waiting does not help there.
        error_type = LatentwireError
    text = call.details() or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details.reason:
        # gRPC itself ended the call, with a message of its own.
        text = "the time-out passed before the response arrived"
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
                # The oldest supported googleapis-common-protos lacks this field.
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
    """Fills ``detail`` from the status; leaves it empty if the status has none of its type."""
    for packed in status.details:
        if packed.Is(detail.DESCRIPTOR):
            try:
                packed.Unpack(detail)
            except DecodeError:
                detail.Clear()
    return detail
