"""A real gRPC server whose answers a test scripts message by message."""

from __future__ import annotations

import hashlib
import threading
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

GENERATION = "generations/g1"


@dataclass(frozen=True)
class Abort:
    """Ends the call with an error."""

    code: grpc.StatusCode
    message: str
    details: tuple[Message, ...] = ()


class Hang:
    """Sends nothing more until the client is gone."""


Script = list["pb.GenerateImageResponse | Abort | Hang"]


@dataclass
class ScriptedServicer(rpc.ImageGenerationServicer):
    """Plays its script to every GenerateImage call and records the requests."""

    script: Script | Callable[[pb.GenerateImageRequest], Script] = field(default_factory=list)
    failure: Abort | None = None
    requests: list[pb.GenerateImageRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    cancelled_names: list[str] = field(default_factory=list)
    num_unary_calls: int = 0
    call_ended: threading.Event = field(default_factory=threading.Event)
    health: bytes | Abort = b"\x08\x01"

    def GenerateImage(self, request, context) -> Iterator[pb.GenerateImageResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        has_ended = threading.Event()
        for callback in (has_ended.set, self.call_ended.set):
            if not context.add_callback(callback):
                callback()
        for item in self.script(request) if callable(self.script) else self.script:
            if isinstance(item, Abort):
                _abort(context, item)
            elif isinstance(item, Hang):
                has_ended.wait(scaled(30))
                return
            else:
                yield item

    def ListModels(self, request, context):
        self._begin_unary(context)
        if not request.page_token:
            return pb.ListModelsResponse(models=[model("a", is_default=True)], next_page_token="2")
        return pb.ListModelsResponse(models=[model("b")])

    def GetModel(self, request, context):
        self._begin_unary(context)
        return pb.GetModelResponse(model=model(request.name or "a"))

    def LoadModel(self, request, context):
        self._begin_unary(context)
        for loaded_bytes in (0, 5, 9):
            loading = pb.ModelLoading(loaded_bytes=loaded_bytes, total_bytes=9)
            yield pb.LoadModelResponse(model_loading=loading)
        if request.name != "lost":
            yield pb.LoadModelResponse(model=model(request.name))

    def UnloadModel(self, request, context):
        self._begin_unary(context)
        unloaded = model(request.name)
        unloaded.state = pb.MODEL_STATE_UNLOADED
        return pb.UnloadModelResponse(model=unloaded)

    def GetServerInfo(self, request, context):
        self._begin_unary(context)
        return pb.GetServerInfoResponse(version="1.2.3", device="cpu", max_queued=64)

    def GetGeneration(self, request, context):
        self._begin_unary(context)
        return pb.GetGenerationResponse(generation=generation(request.name))

    def ListGenerations(self, request, context):
        self._begin_unary(context)
        return pb.ListGenerationsResponse(generations=[generation(GENERATION)])

    def CancelGeneration(self, request, context):
        self._begin_unary(context)
        self.cancelled_names.append(request.name)
        return pb.CancelGenerationResponse(
            generation=generation(request.name, state=pb.GENERATION_STATE_CANCELLED)
        )

    def check_health(self, request: bytes, context) -> bytes:
        if isinstance(self.health, Abort):
            _abort(context, self.health)
        return self.health

    def _begin_unary(self, context) -> None:
        self.num_unary_calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failure is not None:
            _abort(context, self.failure)


@contextmanager
def serving(servicer: ScriptedServicer, *, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serves, by default on a free port, and yields the address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    rpc.add_ImageGenerationServicer_to_server(servicer, server)
    rpc.add_ModelAdminServicer_to_server(servicer, server)
    health = grpc.unary_unary_rpc_method_handler(servicer.check_health)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),)
    )
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


def numbered(*events: pb.GenerateImageResponse | Abort | Hang) -> Script:
    """Sets the generation and the sequence number of each event, as a server does."""
    script: Script = []
    for sequence, event in enumerate(events, start=1):
        if isinstance(event, pb.GenerateImageResponse):
            event.generation, event.sequence = GENERATION, sequence
        script.append(event)
    return script


def failure(
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "a message of the server",
    *,
    retry_after_s: float | None = None,
    **violations: tuple[str, str],
) -> Abort:
    """Returns an error with the details that the real server sends.

    Args:
        violations: Reason and description by field, with ``__`` for the dots of its path.
    """
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="latentwire.v1"))
    if violations:
        bad = error_details_pb2.BadRequest()
        for field_name, (why, description) in violations.items():
            path = field_name.replace("__", ".")
            bad.field_violations.add(field=path, reason=why, description=description)
        details.append(bad)
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after_s * 1_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return Abort(code, message, tuple(details))


def accepted(*, seeds=(7,), warnings=(), **request) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(
        accepted=pb.Accepted(
            effective_request=pb.GenerateImageRequest(**request), seeds=seeds, warnings=warnings
        )
    )


def progress(step: int, step_count: int) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(
        progress=pb.Progress(
            phase=pb.PHASE_DENOISING, step=step, step_count=step_count, fraction=step / step_count
        )
    )


def image(data: bytes, *, index: int = 0, first: int | None = None, **changes):
    """Returns an image event with the first bytes of its data; ``chunk`` carries the rest."""
    values = {
        "index": index,
        "seed": 7 + index,
        "finish_reason": pb.FINISH_REASON_COMPLETED,
        "media_type": "image/png",
        "width": 8,
        "height": 8,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).digest(),
        "data": data if first is None else data[:first],
    }
    return pb.GenerateImageResponse(image=pb.Image(**{**values, **changes}))


def chunk(data: bytes, *, offset: int, index: int = 0) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(
        image_chunk=pb.ImageChunk(image_index=index, offset=offset, data=data)
    )


def completed(image_count: int = 1) -> pb.GenerateImageResponse:
    return pb.GenerateImageResponse(completed=pb.Completed(image_count=image_count))


def model(model_id: str, *, is_default: bool = False) -> pb.Model:
    return pb.Model(
        name=f"models/{model_id}",
        display_name=model_id.upper(),
        is_default=is_default,
        state=pb.MODEL_STATE_READY,
        memory_bytes=3 << 20,
        schedulers=[pb.SchedulerInfo(id="euler", sigmas=["default", "karras"])],
        defaults=pb.ModelDefaults(width=8, height=8, scheduler=pb.Scheduler(id="euler")),
    )


def generation(name: str, *, state: int = pb.GENERATION_STATE_RUNNING) -> pb.Generation:
    return pb.Generation(name=name, state=state, model="models/a", step=1, step_count=4)


def _abort(context, abort: Abort) -> None:
    details = [_packed(detail) for detail in abort.details]
    status = status_pb2.Status(
        code=abort.code.value[0], message=abort.message, details=details
    ).SerializeToString()
    if abort.details:
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
    context.abort(abort.code, abort.message)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
