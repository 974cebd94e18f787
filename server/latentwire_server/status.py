"""Domain errors as gRPC statuses: the only place where one becomes the other.

Every error carries ``ErrorInfo``; an invalid request carries all its violations; an error that
time can heal carries ``RetryInfo``. No text of a library or of a traceback ever leaves.
"""

from __future__ import annotations

import logging
import math
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, assert_never

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from latentwire_server.auth import NotAllowed, Unauthenticated
from latentwire_server.engine import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

DOMAIN: Final = "latentwire.v1"
DETAILS_KEY: Final = "grpc-status-details-bin"
_MAX_VIOLATION_BYTES: Final = 5_000
"""Clients receive 8 KiB of metadata by default; more would lose the whole status."""
_MAX_DESCRIPTION: Final = 200
_MAX_MESSAGE: Final = 500

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a failed call is told to its caller."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[errors.Violation, ...] = ()
    retry_after_s: float | None = None

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Returns the details as gRPC carries them."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.extend(_packed(detail) for detail in self._details())
        return ((DETAILS_KEY, status.SerializeToString()),)

    def _details(self) -> list[Message]:
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
        return details


def failure_of(error: Exception) -> Failure:
    """Returns how ``error`` is told to the caller; an unknown one is logged under an error id."""
    known: Failure | None
    match error:
        case Unauthenticated() | NotAllowed():
            known = _access_failure(error)
        case errors.ModelNotReady() | errors.ModelInUse() | errors.ModelFailed():
            known = _model_failure(error)
        case errors.CallerError():
            known = _caller_failure(error)
        case errors.CapacityError():
            known = _capacity_failure(error)
        case errors.ServerError():
            known = _server_failure(error)
        case _:
            known = None
    return known or _internal(error)


def _access_failure(error: Unauthenticated | NotAllowed) -> Failure:
    code = grpc.StatusCode
    match error:
        case Unauthenticated(reason=reason):
            return Failure(
                code=code.UNAUTHENTICATED,
                reason=reason,
                message="this server wants a valid key in metadata: authorization: Bearer <key>",
            )
        case NotAllowed(service=service):
            return Failure(
                code=code.PERMISSION_DENIED,
                reason="ADMIN_KEY_NEEDED",
                message=f"{service} wants one of the server's admin keys",
                metadata={"service": service},
            )
        case _:
            assert_never(error)


def _model_failure(
    error: errors.ModelNotReady | errors.ModelInUse | errors.ModelFailed,
) -> Failure:
    code = grpc.StatusCode
    match error:
        case errors.ModelNotReady(name=name, retry_after_s=retry_after_s):
            return Failure(
                code=code.UNAVAILABLE,
                reason="MODEL_LOADING",
                message=f"model {_shown(name)} is being loaded",
                metadata={"model": _shown(name)},
                retry_after_s=retry_after_s,
            )
        case errors.ModelInUse(name=name, generation_count=count, retry_after_s=retry_after_s):
            return Failure(
                code=code.FAILED_PRECONDITION,
                reason="MODEL_IN_USE",
                message=f"model {_shown(name)} is needed by {count} that are running or waiting",
                metadata={"model": _shown(name), "generation_count": str(count)},
                retry_after_s=retry_after_s,
            )
        case errors.ModelFailed(name=name, reason=reason):
            return Failure(
                code=code.FAILED_PRECONDITION,
                reason="MODEL_FAILED",
                message=f"model {_shown(name)} could not be loaded: {reason}"[:_MAX_MESSAGE],
                metadata={"model": _shown(name)},
            )
        case _:
            assert_never(error)


def _caller_failure(error: errors.CallerError) -> Failure | None:
    code = grpc.StatusCode
    match error:
        case errors.InvalidRequest(violations=violations):
            return _invalid(violations)
        case errors.Cancelled():
            return Failure(
                code=code.CANCELLED,
                reason="CANCELLED_BY_REQUEST",
                message="the generation was cancelled by CancelGeneration",
            )
        case errors.ModelNotFound() | errors.GenerationNotFound() | errors.RequestIdReused():
            return _name_failure(error)
        case _:
            return _deadline_failure(error)


def _name_failure(error: errors.CallerError) -> Failure | None:
    code = grpc.StatusCode
    match error:
        case errors.ModelNotFound(name=name, known=known):
            return Failure(
                code=code.NOT_FOUND,
                reason="MODEL_NOT_FOUND",
                message=f"no model is called {_shown(name)}; there is: {', '.join(known)}",
                metadata={"model": _shown(name)},
            )
        case errors.GenerationNotFound(name=name):
            return Failure(
                code=code.NOT_FOUND,
                reason="GENERATION_NOT_FOUND",
                message=f"you have no generation {_shown(name)}",
                metadata={"generation": _shown(name)},
            )
        case errors.RequestIdReused(request_id=request_id):
            return Failure(
                code=code.ALREADY_EXISTS,
                reason="REQUEST_ID_REUSED",
                message=f"request_id {_shown(request_id)} belongs to another request of yours;"
                " a new request needs a new one",
                metadata={"request_id": _shown(request_id)},
            )
        case _:
            return None


def _deadline_failure(error: errors.CallerError) -> Failure | None:
    code = grpc.StatusCode
    match error:
        case errors.DeadlineTooShort(needed_s=needed_s, remaining_s=remaining_s):
            return Failure(
                code=code.DEADLINE_EXCEEDED,
                reason="DEADLINE_TOO_SHORT",
                message=f"about {needed_s:.1f} s are needed and {remaining_s:.1f} s are left",
                metadata={"needed_s": f"{needed_s:.3f}", "remaining_s": f"{remaining_s:.3f}"},
            )
        case errors.DeadlinePassed():
            return Failure(
                code=code.DEADLINE_EXCEEDED,
                reason="DEADLINE_PASSED",
                message="the deadline passed before the generation was done",
            )
        case errors.SlowReader(send_timeout_s=send_timeout_s):
            return Failure(
                code=code.DEADLINE_EXCEEDED,
                reason="SLOW_READER",
                message=f"the client read nothing for {send_timeout_s:g} s",
                metadata={"send_timeout_s": f"{send_timeout_s:g}"},
            )
        case _:
            return None


def _capacity_failure(error: errors.CapacityError) -> Failure | None:
    code = grpc.StatusCode
    match error:
        case errors.QueueFull(max_queued=max_queued, retry_after_s=retry_after_s):
            return Failure(
                code=code.RESOURCE_EXHAUSTED,
                reason="QUEUE_FULL",
                message=f"the queue is full, with {max_queued} waiting",
                metadata={"max_queued": str(max_queued)},
                retry_after_s=retry_after_s,
            )
        case errors.DeviceOutOfMemory(width=width, height=height, num_images=num_images):
            return Failure(
                code=code.RESOURCE_EXHAUSTED,
                reason="DEVICE_OUT_OF_MEMORY",
                message=f"{num_images} of {width}x{height} do not fit the device's memory",
                metadata={
                    "width": str(width),
                    "height": str(height),
                    "num_images": str(num_images),
                },
            )
        case errors.Draining(retry_after_s=retry_after_s):
            return Failure(
                code=code.UNAVAILABLE,
                reason="DRAINING",
                message="the server is shutting down",
                retry_after_s=retry_after_s,
            )
        case _:
            return None


def _server_failure(error: errors.ServerError) -> Failure | None:
    code = grpc.StatusCode
    match error:
        case errors.LoraUnusable(id=id_, reason=reason):
            return Failure(
                code=code.FAILED_PRECONDITION,
                reason="LORA_UNUSABLE",
                message=f"adapter {_shown(id_)} cannot be used: {reason}",
                metadata={"lora": _shown(id_)},
            )
        case errors.NonFiniteOutput(step=step):
            return Failure(
                code=code.DATA_LOSS,
                reason="NON_FINITE_OUTPUT",
                message=f"the model gave NaN or infinity at step {step}",
                metadata={"step": str(step)},
            )
        case errors.DeviceFailed():
            return Failure(
                code=code.UNAVAILABLE,
                reason="DEVICE_FAILED",
                message="the device failed and the server is about to end",
                retry_after_s=_RESTART_S,
            )
        case errors.PipelineFailed(error_id=error_id):
            return _pipeline_error(error_id)
        case _:
            return None


_RESTART_S: Final = 5.0
"""How long a supervisor takes to have a broken server back."""


def _internal(error: Exception) -> Failure:
    error_id = uuid.uuid4().hex
    _logger.error("unexpected error error_id=%s", error_id, exc_info=error)
    return _pipeline_error(error_id)


def _pipeline_error(error_id: str) -> Failure:
    return Failure(
        code=grpc.StatusCode.INTERNAL,
        reason="PIPELINE_ERROR",
        message=f"the server failed; its log says more under {error_id}",
        metadata={"error_id": error_id},
    )


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


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _shown(name: str) -> str:
    return ascii(name[:64])[1:-1]
