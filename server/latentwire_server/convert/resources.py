"""Converts generations and models to resources with names."""

from __future__ import annotations

from typing import Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert.times import timestamp
from latentwire_server.engine.snapshots import GenerationSnapshot, GenerationState
from latentwire_server.registry.catalogue import ModelSnapshot, ModelState

_STATES: Final = {
    GenerationState.QUEUED: pb.GENERATION_STATE_QUEUED,
    GenerationState.RUNNING: pb.GENERATION_STATE_RUNNING,
    GenerationState.SUCCEEDED: pb.GENERATION_STATE_SUCCEEDED,
    GenerationState.FAILED: pb.GENERATION_STATE_FAILED,
    GenerationState.CANCELLED: pb.GENERATION_STATE_CANCELLED,
}
_MODEL_STATES: Final = {
    ModelState.UNLOADED: pb.MODEL_STATE_UNLOADED,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}

_DEFAULTS: Final = tuple(
    name for name in pb.ModelDefaults.DESCRIPTOR.fields_by_name if name != "scheduler"
)


def generation_name(generation_id: str) -> str:
    """Returns a generation's resource name."""
    return f"generations/{generation_id}"


def model_name(model_id: str) -> str:
    """Returns a model's resource name."""
    return f"models/{model_id}"


def generation_to_proto(snapshot: GenerationSnapshot) -> pb.Generation:
    """Returns a generation as a resource."""
    request = snapshot.request
    ended = snapshot.end_time
    return pb.Generation(
        name=generation_name(request.generation_id),
        state=_STATES[snapshot.state],
        model=model_name(request.model),
        create_time=timestamp(snapshot.create_time),
        end_time=None if ended is None else timestamp(ended),
        ahead_count=snapshot.ahead_count,
        step=snapshot.step,
        step_count=request.num_steps,
        fraction=snapshot.fraction,
        priority=request.priority,
        user=request.user,
        labels=request.labels,
    )


def model_to_proto(snapshot: ModelSnapshot) -> pb.Model:
    """Returns a model as a resource."""
    model = pb.Model(
        name=model_name(snapshot.id),
        display_name=snapshot.id,
        aliases=snapshot.aliases,
        is_default=snapshot.is_default,
        state=_MODEL_STATES[snapshot.state],
        failure_message=snapshot.failure,
        memory_bytes=snapshot.memory_bytes,
    )
    info = snapshot.info
    if info is None:
        return model
    limits, defaults = info.limits, info.defaults
    properties = pb.Model(
        display_name=info.display_name,
        family=info.family,
        revision=info.revision,
        capabilities=info.capabilities,
        schedulers=[
            pb.SchedulerInfo(
                id=scheduler.id,
                sigmas=scheduler.sigmas,
                evaluations_per_step=scheduler.evaluations_per_step,
            )
            for scheduler in info.schedulers
        ],
        limits=pb.ModelLimits(
            **{name: getattr(limits, name) for name in pb.ModelLimits.DESCRIPTOR.fields_by_name}
        ),
        loras=[lora.id for lora in info.loras],
        defaults=pb.ModelDefaults(
            scheduler=pb.Scheduler(id=defaults.scheduler.id, sigmas=defaults.scheduler.sigmas),
            **{name: getattr(defaults, name) for name in _DEFAULTS},
        ),
    )
    model.MergeFrom(properties)
    return model
