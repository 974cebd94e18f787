"""Converts the engine's events to messages; an image too large for one becomes several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert.requests import effective_request
from latentwire_server.convert.resources import model_name
from latentwire_server.convert.times import duration
from latentwire_server.engine.events import (
    Accepted,
    Completed,
    Event,
    FinishReason,
    Image,
    ModelLoading,
    PhaseName,
    Preview,
    Progress,
    Queued,
)
from latentwire_server.engine.events import Warning as RequestWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latentwire_server.engine.request import GenerationRequest

_PHASES: Final = {
    PhaseName.ENCODING: pb.PHASE_ENCODING,
    PhaseName.DENOISING: pb.PHASE_DENOISING,
    PhaseName.DECODING: pb.PHASE_DECODING,
}

_FINISH_REASONS: Final = {
    FinishReason.COMPLETED: pb.FINISH_REASON_COMPLETED,
    FinishReason.FILTERED: pb.FINISH_REASON_FILTERED,
}


def accepted_to_proto(
    request: GenerationRequest, warnings: Sequence[RequestWarning]
) -> pb.Accepted:
    """Returns the first message of a generation."""
    return pb.Accepted(
        effective_request=effective_request(request),
        seeds=request.seeds,
        warnings=[
            pb.Warning(
                field=warning.field,
                reason=warning.reason,
                message=warning.message,
                replacement=warning.replacement,
            )
            for warning in warnings
        ],
    )


def responses(
    event: Event, *, max_data_bytes: int, sha256: bytes
) -> Iterator[pb.GenerateImageResponse]:
    """Returns the messages of one event: several for an image that exceeds ``max_data_bytes``.

    Args:
        event: What happened.
        max_data_bytes: The most image bytes in one message.
        sha256: Of the image's data, where ``event`` is an image.
    """
    match event:
        case Accepted():
            accepted = accepted_to_proto(event.request, event.warnings)
            yield pb.GenerateImageResponse(accepted=accepted)
        case Queued():
            queued = pb.Queued(
                ahead_count=event.ahead_count, estimated_wait=duration(event.estimated_wait_s)
            )
            yield pb.GenerateImageResponse(queued=queued)
        case ModelLoading():
            yield pb.GenerateImageResponse(model_loading=model_loading(event))
        case Progress():
            yield pb.GenerateImageResponse(progress=_progress(event))
        case Preview():
            yield pb.GenerateImageResponse(preview=_preview(event))
        case Image():
            yield from _image(event, max_data_bytes=max_data_bytes, sha256=sha256)
        case Completed():
            yield pb.GenerateImageResponse(completed=_completed(event))
        case _:
            assert_never(event)


def model_loading(event: ModelLoading) -> pb.ModelLoading:
    """Returns the loading progress of a model."""
    return pb.ModelLoading(
        model=model_name(event.model),
        loaded_bytes=event.loaded_bytes,
        total_bytes=event.total_bytes,
    )


def _progress(event: Progress) -> pb.Progress:
    return pb.Progress(
        phase=_PHASES[event.phase],
        step=event.step,
        step_count=event.step_count,
        fraction=event.fraction,
        estimated_remaining=duration(event.estimated_remaining_s),
    )


def _preview(event: Preview) -> pb.Preview:
    return pb.Preview(
        image_index=event.image_index,
        step=event.step,
        media_type=event.media_type,
        width=event.width,
        height=event.height,
        data=event.data,
    )


def _image(
    event: Image, *, max_data_bytes: int, sha256: bytes
) -> Iterator[pb.GenerateImageResponse]:
    size_bytes = len(event.data)
    yield pb.GenerateImageResponse(
        image=pb.Image(
            index=event.index,
            seed=event.seed,
            finish_reason=_FINISH_REASONS[event.finish_reason],
            media_type=event.media_type,
            width=event.width,
            height=event.height,
            size_bytes=size_bytes,
            sha256=sha256,
            data=event.data[:max_data_bytes],
        )
    )
    for offset in range(max_data_bytes, size_bytes, max_data_bytes):
        part = event.data[offset : offset + max_data_bytes]
        chunk = pb.ImageChunk(image_index=event.index, offset=offset, data=part)
        yield pb.GenerateImageResponse(image_chunk=chunk)


def _completed(event: Completed) -> pb.Completed:
    timings = event.timings
    return pb.Completed(
        image_count=event.image_count,
        timings=pb.Timings(
            queued=duration(timings.queued_s),
            encoding=duration(timings.encoding_s),
            denoising=duration(timings.denoising_s),
            decoding=duration(timings.decoding_s),
            total=duration(timings.total_s),
        ),
        peak_memory_bytes=event.peak_memory_bytes,
        model_revision=event.model_revision,
    )
