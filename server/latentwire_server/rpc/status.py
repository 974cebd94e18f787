"""Translates domain errors to gRPC statuses; the only place that does.

Every error carries ``ErrorInfo``; an invalid request carries all its violations; an error that
goes away with time carries ``RetryInfo``. No text of a library or of a traceback reaches a caller.
"""

from __future__ import annotations

import logging
import math
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from latentwire_server.engine import errors
from latentwire_server.rpc.auth import NotAllowed, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

DOMAIN: Final = "latentwire.v1"
DETAILS_KEY: Final = "grpc-status-details-bin"
_MAX_VIOLATION_BYTES: Final = 5_000
"""Clients accept 8 KiB of metadata by default; beyond that they lose the whole status."""
_MAX_DESCRIPTION: Final = 200
_MAX_MESSAGE: Final = 500

_RESTART_S: Final = 5.0
"""How long a supervisor takes to restart a broken server."""

ErrorT = TypeVar("ErrorT", bound=Exception)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the caller of a failed call receives."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[errors.Violation, ...] = ()
    retry_after_s: float | None = None

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Returns the details as gRPC carries them."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(
                reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata)
            )
        ]
        if self.violations:
            details.append(_bad_request(self.violations))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(math.ceil(max(0.0, self.retry_after_s) * 1_000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            status.details.add().Pack(detail)
        return ((DETAILS_KEY, status.SerializeToString()),)


def failure_of(error: Exception) -> Failure:
    """Returns what the caller receives; an unknown error is logged under an error id."""
    if isinstance(error, errors.InvalidRequest):
        return _invalid(error.violations)
    for translate in _ROWS:
        failure = translate(error)
        if failure is not None:
            return failure
    error_id = uuid.uuid4().hex
    _logger.error("unexpected error error_id=%s", error_id, exc_info=error)
    return failure_of(errors.PipelineFailed(error_id=error_id))


def _row(
    kind: type[ErrorT],
    code: grpc.StatusCode,
    reason: str | Callable[[ErrorT], str],
    message: Callable[[ErrorT], str],
    metadata: Callable[[ErrorT], dict[str, str]] = lambda _: {},
    *,
    retry_after_s: float | None = None,
) -> Callable[[Exception], Failure | None]:
    """Returns a function that translates one kind of error, and returns None for others.

    The error's own ``retry_after_s``, if it has one, takes precedence.
    """

    def translate(error: Exception) -> Failure | None:
        if not isinstance(error, kind):
            return None
        return Failure(
            code=code,
            reason=reason if isinstance(reason, str) else reason(error),
            message=message(error)[:_MAX_MESSAGE],
            metadata=metadata(error),
            retry_after_s=getattr(error, "retry_after_s", retry_after_s),
        )

    return translate


def _invalid(violations: tuple[errors.Violation, ...]) -> Failure:
    reasons = {violation.reason for violation in violations}
    reason = reasons.pop() if len(reasons) == 1 else "INVALID_FIELDS"
    return Failure(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason=reason,
        message="; ".join(violation.description for violation in violations[:3])[:_MAX_MESSAGE],
        metadata={"violation_count": str(len(violations))},
        violations=violations,
    )


def _bad_request(violations: tuple[errors.Violation, ...]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for violation in violations:
        request.field_violations.add(
            field=violation.field,
            description=violation.description[:_MAX_DESCRIPTION],
            reason=violation.reason,
        )
        if request.ByteSize() > _MAX_VIOLATION_BYTES:
            del request.field_violations[-1]
            break
    return request


def _safe(name: str) -> str:
    """Returns a caller's text in the form that messages may quote: shortened, in ASCII."""
    return ascii(name[:64])[1:-1]


_CODE: Final = grpc.StatusCode
_ROWS: Final = (
    _row(
        Unauthenticated,
        _CODE.UNAUTHENTICATED,
        lambda error: error.reason,
        lambda _: "this server requires a valid key in metadata: authorization: Bearer <key>",
    ),
    _row(
        NotAllowed,
        _CODE.PERMISSION_DENIED,
        "ADMIN_KEY_NEEDED",
        lambda error: f"{error.service} requires one of the server's admin keys",
        lambda error: {"service": error.service},
    ),
    _row(
        errors.ModelNotReady,
        _CODE.UNAVAILABLE,
        "MODEL_LOADING",
        lambda error: f"model {_safe(error.name)} is being loaded",
        lambda error: {"model": _safe(error.name)},
    ),
    _row(
        errors.ModelInUse,
        _CODE.FAILED_PRECONDITION,
        "MODEL_IN_USE",
        lambda error: (
            f"model {_safe(error.name)} is in use by {error.generation_count} running or waiting"
            " generations"
        ),
        lambda error: {
            "model": _safe(error.name),
            "generation_count": str(error.generation_count),
        },
    ),
    _row(
        errors.ModelFailed,
        _CODE.FAILED_PRECONDITION,
        "MODEL_FAILED",
        lambda error: f"model {_safe(error.name)} could not be loaded: {error.reason}",
        lambda error: {"model": _safe(error.name)},
    ),
    _row(
        errors.ModelNotFound,
        _CODE.NOT_FOUND,
        "MODEL_NOT_FOUND",
        lambda error: f"no model is called {_safe(error.name)}; there is: {', '.join(error.known)}",
        lambda error: {"model": _safe(error.name)},
    ),
    _row(
        errors.GenerationNotFound,
        _CODE.NOT_FOUND,
        "GENERATION_NOT_FOUND",
        lambda error: f"you have no generation {_safe(error.name)}",
        lambda error: {"generation": _safe(error.name)},
    ),
    _row(
        errors.RequestIdReused,
        _CODE.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        lambda error: (
            f"request_id {_safe(error.request_id)} belongs to another request of yours;"
            " a new request needs a new one"
        ),
        lambda error: {"request_id": _safe(error.request_id)},
    ),
    _row(
        errors.Cancelled,
        _CODE.CANCELLED,
        "CANCELLED_BY_REQUEST",
        lambda _: "the generation was cancelled by CancelGeneration",
    ),
    _row(
        errors.DeadlineTooShort,
        _CODE.DEADLINE_EXCEEDED,
        "DEADLINE_TOO_SHORT",
        lambda error: (
            f"about {error.needed_s:.1f} s are needed and {error.remaining_s:.1f} s are left"
        ),
        lambda error: {
            "needed_s": f"{error.needed_s:.3f}",
            "remaining_s": f"{error.remaining_s:.3f}",
        },
    ),
    _row(
        errors.DeadlinePassed,
        _CODE.DEADLINE_EXCEEDED,
        "DEADLINE_PASSED",
        lambda _: "the deadline passed before the generation was done",
    ),
    _row(
        errors.SlowReader,
        _CODE.DEADLINE_EXCEEDED,
        "SLOW_READER",
        lambda error: f"the client read nothing for {error.send_timeout_s:g} s",
        lambda error: {"send_timeout_s": f"{error.send_timeout_s:g}"},
    ),
    _row(
        errors.QueueFull,
        _CODE.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        lambda error: f"the queue is full, with {error.max_queued} waiting",
        lambda error: {"max_queued": str(error.max_queued)},
    ),
    _row(
        errors.DeviceOutOfMemory,
        _CODE.RESOURCE_EXHAUSTED,
        "DEVICE_OUT_OF_MEMORY",
        lambda error: (
            f"{error.num_images} images of {error.width}x{error.height} do not fit in device memory"
        ),
        lambda error: {
            "width": str(error.width),
            "height": str(error.height),
            "num_images": str(error.num_images),
        },
    ),
    _row(
        errors.Draining,
        _CODE.UNAVAILABLE,
        "DRAINING",
        lambda _: "the server is shutting down",
    ),
    _row(
        errors.LoraUnusable,
        _CODE.FAILED_PRECONDITION,
        "LORA_UNUSABLE",
        lambda error: f"LoRA {_safe(error.id)} cannot be used: {error.reason}",
        lambda error: {"lora": _safe(error.id)},
    ),
    _row(
        errors.NonFiniteOutput,
        _CODE.DATA_LOSS,
        "NON_FINITE_OUTPUT",
        lambda error: f"the model produced NaN or infinity at step {error.step}",
        lambda error: {"step": str(error.step)},
    ),
    _row(
        errors.DeviceFailed,
        _CODE.UNAVAILABLE,
        "DEVICE_FAILED",
        lambda _: "the device failed and the server is about to exit",
        retry_after_s=_RESTART_S,
    ),
    _row(
        errors.PipelineFailed,
        _CODE.INTERNAL,
        "PIPELINE_ERROR",
        lambda error: f"the server failed; see its log under error id {error.error_id}",
        lambda error: {"error_id": error.error_id},
    ),
)
