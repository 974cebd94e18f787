"""Everything that a client does besides streaming, without I/O.

An operation is a generator: it yields what to do next (a unary call or a pause), is sent the
answer or thrown the error, and returns the result. The sync and the asyncio client drive the same
operations; only how they wait differs.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latentwire._channel import ADMIN_SERVICE, SERVICE
from latentwire._convert import (
    generation_from_proto,
    model_from_proto,
    server_info_from_proto,
)
from latentwire.errors import (
    CorruptStreamError,
    LatentwireError,
    NotFoundError,
    UnavailableError,
)
from latentwire.v1 import image_generation_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from latentwire._resources import Generation, Model, ServerInfo

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
# grpc.health.v1 is two messages of one field each; reading them here spares a dependency.
_HEALTH_CHECK_PATH: Final = "/grpc.health.v1.Health/Check"
_HEALTH_SERVING: Final = b"\x08\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryCall:
    """Send these bytes to this method and send its answer's bytes back in."""

    path: str
    request: bytes
    timeout_s: float | None = None
    """None: the client's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Wait this long."""

    duration_s: float


ResultT = TypeVar("ResultT")
Step = UnaryCall | Pause
Outcome = bytes | LatentwireError | None
"""What a step came to: a call's answer or its error, or None after a pause."""
Operation = Generator[Step, Any, ResultT]


def resume(operation: Operation[ResultT], outcome: Outcome) -> Step:
    """Tells an operation what its step came to, None for the start, and returns the next one.

    Raises:
        StopIteration: The operation is done; its value is the result.
        LatentwireError: The operation does not handle the error.
    """
    if isinstance(outcome, LatentwireError):
        return operation.throw(outcome)
    return operation.send(outcome)


def list_models() -> Operation[tuple[Model, ...]]:
    """Returns all models, the default one first."""
    models: list[pb.Model] = []
    request = pb.ListModelsRequest()
    while True:
        response = pb.ListModelsResponse.FromString((yield _call("ListModels", request)))
        models += response.models
        if not response.next_page_token:
            return tuple(model_from_proto(model) for model in models)
        request.page_token = response.next_page_token


def get_model(name: str) -> Operation[Model]:
    """Returns one model by name, id or alias; the default one for an empty name."""
    answer = yield _call("GetModel", pb.GetModelRequest(name=name))
    return model_from_proto(pb.GetModelResponse.FromString(answer).model)


def get_server_info() -> Operation[ServerInfo]:
    """Returns the server's version, device, limits and load."""
    answer = yield _call("GetServerInfo", pb.GetServerInfoRequest())
    return server_info_from_proto(pb.GetServerInfoResponse.FromString(answer))


def get_generation(name: str) -> Operation[Generation]:
    """Returns one of the caller's generations."""
    answer = yield _call("GetGeneration", pb.GetGenerationRequest(name=_generation_name(name)))
    return generation_from_proto(pb.GetGenerationResponse.FromString(answer).generation)


def list_generations() -> Operation[tuple[Generation, ...]]:
    """Returns the caller's generations that are queued or running, in the order served."""
    generations: list[pb.Generation] = []
    request = pb.ListGenerationsRequest()
    while True:
        answer = yield _call("ListGenerations", request)
        response = pb.ListGenerationsResponse.FromString(answer)
        generations += response.generations
        if not response.next_page_token:
            return tuple(generation_from_proto(generation) for generation in generations)
        request.page_token = response.next_page_token


def cancel_generation(name: str, *, timeout_s: float | None = None) -> Operation[Generation]:
    """Cancels a generation and returns what it is then."""
    request = pb.CancelGenerationRequest(name=_generation_name(name))
    answer = yield _call("CancelGeneration", request, timeout_s=timeout_s)
    return generation_from_proto(pb.CancelGenerationResponse.FromString(answer).generation)


def unload_model(name: str) -> Operation[Model]:
    """Unloads a model and returns what it is then."""
    request = pb.UnloadModelRequest(name=name)
    answer = yield UnaryCall(
        path=f"/{ADMIN_SERVICE}/UnloadModel", request=request.SerializeToString()
    )
    return model_from_proto(pb.UnloadModelResponse.FromString(answer).model)


def loading_step(
    response: pb.LoadModelResponse, on_progress: Callable[[int, int], object] | None
) -> Model | None:
    """Takes in one message of a load; returns the model where it is the last one."""
    match response.WhichOneof("event"):
        case "model":
            return model_from_proto(response.model)
        case "model_loading" if on_progress is not None:
            loading = response.model_loading
            on_progress(loading.loaded_bytes, loading.total_bytes)
    return None


def loaded(model: Model | None) -> Model:
    """Returns what a load ended with.

    Raises:
        CorruptStreamError: It ended without the model.
    """
    if model is None:
        msg = "the load ended without the model"
        raise CorruptStreamError(msg)
    return model


def wait_ready(timeout_s: float, *, model: str) -> Operation[None]:
    """Returns once the server's health check says that it, or one model, can draw.

    Raises:
        UnavailableError: It could not within the time.
    """
    service = f"models/{model.removeprefix('models/')}" if model else ""
    ends_at = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        remaining_s = ends_at - time.monotonic()
        try:
            answer = yield UnaryCall(
                path=_HEALTH_CHECK_PATH,
                request=_health_check_request(service),
                timeout_s=max(remaining_s, _FIRST_PAUSE_S),
            )
            if answer == _HEALTH_SERVING:
                return
            cause: LatentwireError | None = None
        except NotFoundError:
            raise
        except LatentwireError as error:
            cause = error
        if ends_at - time.monotonic() < pause_s:
            msg = f"not ready after {timeout_s:g} s: {cause.message if cause else 'still loading'}"
            raise UnavailableError(msg) from cause
        yield Pause(duration_s=pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _call(method: str, request: Message, *, timeout_s: float | None = None) -> UnaryCall:
    return UnaryCall(
        path=f"/{SERVICE}/{method}", request=request.SerializeToString(), timeout_s=timeout_s
    )


def _generation_name(name: str) -> str:
    """Takes a bare id too."""
    return name if name.startswith("generations/") else f"generations/{name}"


def _health_check_request(service: str) -> bytes:
    # HealthCheckRequest{string service = 1}, which GetModelRequest{string name = 1} looks like.
    return pb.GetModelRequest(name=service).SerializeToString()
