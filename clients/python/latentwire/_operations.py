"""The calls of a client besides streaming, without I/O.

An operation is a generator: it yields the next step (a unary call or a pause), is sent the
response or thrown the error, and returns the result. The sync and the asyncio client drive the
same operations and differ only in how they wait.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

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
from latentwire.v1 import image_generation_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from latentwire._resources import Generation, Model, ServerInfo

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_HEALTH_CHECK_PATH: Final = "/grpc.health.v1.Health/Check"
_HEALTH_SERVING: Final = b"\x08\x01"

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryCall:
    """Call ``method`` with ``request``; send the response back in."""

    method: grpc.UnaryUnaryMultiCallable[Any, Any]
    request: object
    timeout_s: float | None = None
    """None: the client's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Wait this long."""

    duration_s: float


Step = UnaryCall | Pause
Outcome = object
"""The result of a step: a call's response or ``LatentwireError``, None after a pause."""
Operation = Generator[Step, Any, ResultT]


def resume(operation: Operation[ResultT], outcome: Outcome) -> Step:
    """Sends the outcome of the last step (None to begin) and returns the next step.

    Raises:
        StopIteration: The operation is done; its value is the result.
        LatentwireError: The operation does not handle the error.
    """
    if isinstance(outcome, LatentwireError):
        return operation.throw(outcome)
    return operation.send(outcome)


class Operations:
    """The operations over one channel. Typed as if it were a sync channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = rpc.ImageGenerationStub(channel)
        self._admin = rpc.ModelAdminStub(channel)
        # grpc.health.v1 has messages of one field each. A look-alike of the request and the raw
        # response spare the base install a dependency.
        self._check_health: grpc.UnaryUnaryMultiCallable[pb.GetModelRequest, bytes]
        self._check_health = channel.unary_unary(
            _HEALTH_CHECK_PATH, request_serializer=pb.GetModelRequest.SerializeToString
        )

    # Each operation is documented at the client's method.

    def list_models(self) -> Operation[tuple[Model, ...]]:
        models: list[pb.Model] = []
        request = pb.ListModelsRequest()
        while True:
            response = yield from _call(self._stub.ListModels, request)
            models += response.models
            if not response.next_page_token:
                return tuple(model_from_proto(model) for model in models)
            request.page_token = response.next_page_token

    def get_model(self, name: str) -> Operation[Model]:
        response = yield from _call(self._stub.GetModel, pb.GetModelRequest(name=name))
        return model_from_proto(response.model)

    def unload_model(self, name: str) -> Operation[Model]:
        response = yield from _call(self._admin.UnloadModel, pb.UnloadModelRequest(name=name))
        return model_from_proto(response.model)

    def get_server_info(self) -> Operation[ServerInfo]:
        response = yield from _call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        return server_info_from_proto(response)

    def get_generation(self, name: str) -> Operation[Generation]:
        request = pb.GetGenerationRequest(name=_generation_name(name))
        response = yield from _call(self._stub.GetGeneration, request)
        return generation_from_proto(response.generation)

    def list_generations(self) -> Operation[tuple[Generation, ...]]:
        generations: list[pb.Generation] = []
        request = pb.ListGenerationsRequest()
        while True:
            response = yield from _call(self._stub.ListGenerations, request)
            generations += response.generations
            if not response.next_page_token:
                return tuple(generation_from_proto(generation) for generation in generations)
            request.page_token = response.next_page_token

    def cancel_generation(self, name: str, *, timeout_s: float | None) -> Operation[Generation]:
        request = pb.CancelGenerationRequest(name=_generation_name(name))
        response = yield from _call(self._stub.CancelGeneration, request, timeout_s=timeout_s)
        return generation_from_proto(response.generation)

    def wait_ready(self, timeout_s: float, *, model: str) -> Operation[None]:
        service = f"models/{model.removeprefix('models/')}" if model else ""
        ends_at = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            remaining_s = ends_at - time.monotonic()
            try:
                status = yield from _call(
                    self._check_health,
                    pb.GetModelRequest(name=service),
                    timeout_s=max(remaining_s, _FIRST_PAUSE_S),
                )
                if status == _HEALTH_SERVING:
                    return
                cause: LatentwireError | None = None
            except NotFoundError:
                raise
            except LatentwireError as error:
                cause = error
            if ends_at - time.monotonic() < pause_s:
                reason = cause.message if cause else "still loading"
                msg = f"not ready after {timeout_s:g} s: {reason}"
                raise UnavailableError(msg) from cause
            yield Pause(duration_s=pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def loading_step(
    response: pb.LoadModelResponse, on_progress: Callable[[int, int], object] | None
) -> Model | None:
    """Reports the progress in one message of a load; returns the model if the load is done."""
    match response.WhichOneof("event"):
        case "model":
            return model_from_proto(response.model)
        case "model_loading" if on_progress is not None:
            loading = response.model_loading
            on_progress(loading.loaded_bytes, loading.total_bytes)
    return None


def loaded(model: Model | None) -> Model:
    """Returns the model that a load ended with.

    Raises:
        CorruptStreamError: The load ended without one.
    """
    if model is None:
        msg = "the load ended without the model"
        raise CorruptStreamError(msg)
    return model


def _call(
    method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
    request: RequestT,
    *,
    timeout_s: float | None = None,
) -> Operation[ResponseT]:
    response: ResponseT = yield UnaryCall(method=method, request=request, timeout_s=timeout_s)
    return response


def _generation_name(name: str) -> str:
    return name if name.startswith("generations/") else f"generations/{name}"
