"""Converts messages of the contract to the client's own types. No I/O."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypedDict, cast

from google.protobuf.json_format import MessageToDict

from latentwire import _events, _resources
from latentwire.v1 import image_generation_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
    from google.protobuf.timestamp_pb2 import Timestamp

# The precision of a float32 between 0 and 1: 0.1 stays 0.1.
_FRACTION_DIGITS: Final = 7
_LIMITS: Final = tuple(field.name for field in dataclasses.fields(_resources.ModelLimits))


class Header(TypedDict):
    """The fields of ``EventHeader``."""

    generation: str
    sequence: int
    event_time: datetime | None


def header_from_proto(response: pb.GenerateImageResponse) -> Header:
    return Header(
        generation=response.generation,
        sequence=response.sequence,
        event_time=(_utc_time(response.event_time) if response.HasField("event_time") else None),
    )


def event_from_proto(  # noqa: PLR0911 - one return per kind
    response: pb.GenerateImageResponse,
) -> _events.Event | None:
    """Returns the event; None for parts of an image and for kinds newer than these stubs."""
    header = header_from_proto(response)
    match response.WhichOneof("event"):
        case "accepted":
            return _accepted(response.accepted, header)
        case "queued":
            return _queued(response.queued, header)
        case "model_loading":
            return _model_loading(response.model_loading, header)
        case "progress":
            return _progress(response.progress, header)
        case "preview":
            return _preview(response.preview, header)
        case "completed":
            return _completed(response.completed, header)
        case _:
            return None


def image_from_proto(image: pb.Image, *, data: bytes, header: Header) -> _events.Image:
    return _events.Image(
        **header,
        index=image.index,
        seed=image.seed,
        finish_reason=enum_name(pb.FinishReason, image.finish_reason, "FINISH_REASON_"),
        media_type=image.media_type,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        data=data,
    )


def model_from_proto(model: pb.Model) -> _resources.Model:
    return _resources.Model(
        name=model.name,
        display_name=model.display_name,
        aliases=tuple(model.aliases),
        is_default=model.is_default,
        state=enum_name(pb.ModelState, model.state, "MODEL_STATE_"),
        failure_message=model.failure_message,
        family=model.family,
        revision=model.revision,
        capabilities=tuple(model.capabilities),
        schedulers=tuple(
            _resources.SchedulerInfo(
                id=scheduler.id,
                sigmas=tuple(scheduler.sigmas),
                evaluations_per_step=scheduler.evaluations_per_step,
            )
            for scheduler in model.schedulers
        ),
        limits=_resources.ModelLimits(
            **{name: getattr(model.limits, name) for name in _LIMITS},
        ),
        defaults=_defaults(model.defaults),
        loras=tuple(model.loras),
        memory_bytes=model.memory_bytes,
    )


def _defaults(defaults: pb.ModelDefaults) -> _resources.ModelDefaults:
    # JSON has the shortest decimals of a float32: 0.3, not 0.30000001192092896.
    decimals = MessageToDict(defaults, preserving_proto_field_name=True)
    return _resources.ModelDefaults(
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=decimals.get("guidance_scale", 0.0),
        scheduler=(defaults.scheduler.id, defaults.scheduler.sigmas),
        high_noise_frac=decimals.get("high_noise_frac"),
        high_resolution_fix=decimals.get("high_resolution_fix"),
    )


def generation_from_proto(generation: pb.Generation) -> _resources.Generation:
    return _resources.Generation(
        name=generation.name,
        state=enum_name(pb.GenerationState, generation.state, "GENERATION_STATE_"),
        model=generation.model,
        create_time=_utc_time(generation.create_time),
        end_time=(_utc_time(generation.end_time) if generation.HasField("end_time") else None),
        ahead_count=generation.ahead_count,
        step=generation.step,
        step_count=generation.step_count,
        fraction=round(generation.fraction, _FRACTION_DIGITS),
        priority=generation.priority,
        user=generation.user,
        labels=dict(generation.labels),
    )


def server_info_from_proto(info: pb.GetServerInfoResponse) -> _resources.ServerInfo:
    return _resources.ServerInfo(
        version=info.version,
        device=info.device,
        dtype=info.dtype,
        batching=info.batching,
        max_rows=info.max_rows,
        max_request_bytes=info.max_request_bytes,
        max_queued=info.max_queued,
        queued_count=info.queued_count,
        running_count=info.running_count,
        draining=info.draining,
        start_time=_utc_time(info.start_time),
        library_versions=dict(info.library_versions),
        denoiser_call_count=info.denoiser_call_count,
        denoiser_row_count=info.denoiser_row_count,
        denoiser_place_count=info.denoiser_place_count,
        denoiser_backend=info.denoiser_backend,
        compiled_shapes=tuple(info.compiled_shapes),
        estimated_wait_s=_seconds(info.estimated_wait) if info.HasField("estimated_wait") else None,
    )


def enum_name(enum: EnumTypeWrapper, value: int, prefix: str) -> str:
    """Returns a value's lower-case name without its prefix; ``unknown`` for newer values."""
    try:
        return enum.Name(value).removeprefix(prefix).lower()
    except ValueError:
        return "unknown"


def _accepted(accepted: pb.Accepted, header: Header) -> _events.Accepted:
    return _events.Accepted(
        **header,
        effective_request=accepted.effective_request,
        seeds=tuple(accepted.seeds),
        warnings=tuple(
            _events.RequestWarning(
                field=warning.field,
                reason=warning.reason,
                message=warning.message,
                replacement=warning.replacement,
            )
            # mypy confuses the stubs' Warning with the built-in one.
            for warning in cast("Iterable[pb.Warning]", accepted.warnings)
        ),
    )


def _queued(queued: pb.Queued, header: Header) -> _events.Queued:
    has_estimate = queued.HasField("estimated_wait")
    return _events.Queued(
        **header,
        ahead_count=queued.ahead_count,
        estimated_wait_s=_seconds(queued.estimated_wait) if has_estimate else None,
    )


def _model_loading(loading: pb.ModelLoading, header: Header) -> _events.ModelLoading:
    return _events.ModelLoading(
        **header,
        model=loading.model,
        loaded_bytes=loading.loaded_bytes,
        total_bytes=loading.total_bytes,
    )


def _progress(progress: pb.Progress, header: Header) -> _events.Progress:
    has_estimate = progress.HasField("estimated_remaining")
    return _events.Progress(
        **header,
        phase=enum_name(pb.Phase, progress.phase, "PHASE_"),
        step=progress.step,
        step_count=progress.step_count,
        fraction=round(progress.fraction, _FRACTION_DIGITS),
        estimated_remaining_s=_seconds(progress.estimated_remaining) if has_estimate else None,
    )


def _preview(preview: pb.Preview, header: Header) -> _events.Preview:
    return _events.Preview(
        **header,
        image_index=preview.image_index,
        step=preview.step,
        media_type=preview.media_type,
        width=preview.width,
        height=preview.height,
        data=preview.data,
    )


def _completed(completed: pb.Completed, header: Header) -> _events.Completed:
    timings = completed.timings
    return _events.Completed(
        **header,
        image_count=completed.image_count,
        timings=_events.Timings(
            queued_s=_seconds(timings.queued),
            encoding_s=_seconds(timings.encoding),
            denoising_s=_seconds(timings.denoising),
            decoding_s=_seconds(timings.decoding),
            total_s=_seconds(timings.total),
        ),
        peak_memory_bytes=completed.peak_memory_bytes,
        model_revision=completed.model_revision,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _utc_time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
