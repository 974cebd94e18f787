"""The table of schedulers: kebab-case ids, diffusers' classes and their options. Any thread."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import diffusers

from latentwire_server.models.info import SchedulerChoice, SchedulerInfo

if TYPE_CHECKING:
    from collections.abc import Mapping


SIGMAS_FLAGS: Final[Mapping[str, str]] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Spacings of the noise levels, with their flags in a scheduler's configuration (one at most)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerEntry:
    """A scheduler of the table."""

    class_name: str
    """In diffusers."""
    options: Mapping[str, object] = field(default_factory=dict)
    """What replaces the model's own scheduler configuration."""
    evaluations_per_step: int = 1
    max_inference_steps: int | None = None

    @property
    def spacings(self) -> tuple[str, ...]:
        """The spacings of noise levels that it has besides the default."""
        parameters = inspect.signature(getattr(diffusers, self.class_name).__init__).parameters
        return tuple(name for name, flag in SIGMAS_FLAGS.items() if flag in parameters)


SCHEDULERS: Final[Mapping[str, SchedulerEntry]] = {
    "ddim": SchedulerEntry(class_name="DDIMScheduler"),
    "ddpm": SchedulerEntry(class_name="DDPMScheduler"),
    "pndm": SchedulerEntry(class_name="PNDMScheduler", options={"skip_prk_steps": True}),
    "lms": SchedulerEntry(class_name="LMSDiscreteScheduler"),
    "euler": SchedulerEntry(class_name="EulerDiscreteScheduler"),
    "euler-a": SchedulerEntry(class_name="EulerAncestralDiscreteScheduler"),
    "heun": SchedulerEntry(class_name="HeunDiscreteScheduler", evaluations_per_step=2),
    "dpm2": SchedulerEntry(class_name="KDPM2DiscreteScheduler", evaluations_per_step=2),
    "dpm2-a": SchedulerEntry(class_name="KDPM2AncestralDiscreteScheduler", evaluations_per_step=2),
    "dpmpp-2m": SchedulerEntry(
        class_name="DPMSolverMultistepScheduler", options={"algorithm_type": "dpmsolver++"}
    ),
    "dpmpp-2m-sde": SchedulerEntry(
        class_name="DPMSolverMultistepScheduler", options={"algorithm_type": "sde-dpmsolver++"}
    ),
    # Not DPMSolverSDEScheduler: its noise comes from a Brownian tree with a seed of its own, so
    # the images of one request could not each follow their own generator.
    "dpmpp-sde": SchedulerEntry(
        class_name="DPMSolverSinglestepScheduler",
        # The class stops above zero by default, which leaves noise in the image; it can reach zero
        # only with the lower order at the end.
        options={
            "algorithm_type": "sde-dpmsolver++",
            "final_sigmas_type": "zero",
            "lower_order_final": True,
        },
    ),
    "unipc": SchedulerEntry(class_name="UniPCMultistepScheduler"),
    "deis": SchedulerEntry(class_name="DEISMultistepScheduler", options={"algorithm_type": "deis"}),
    # These take their timesteps from the 50 that their models were distilled on.
    "lcm": SchedulerEntry(class_name="LCMScheduler", max_inference_steps=50),
    "tcd": SchedulerEntry(class_name="TCDScheduler", max_inference_steps=50),
}


def scheduler_infos() -> tuple[SchedulerInfo, ...]:
    """Returns the schedulers of every model that predicts noise or velocity."""
    return tuple(
        SchedulerInfo(
            id=id_,
            sigmas=("default", *entry.spacings),
            evaluations_per_step=entry.evaluations_per_step,
            max_inference_steps=entry.max_inference_steps,
        )
        for id_, entry in SCHEDULERS.items()
    )


def choice_of(config: Mapping[str, object]) -> SchedulerChoice:
    """Returns the scheduler of a model's own configuration.

    The spacing is ``"default"``: the configuration's own flags apply if a request names none.

    Raises:
        ValueError: the configuration names a class that is not in the table.
    """
    class_name = config.get("_class_name")
    candidates = [id_ for id_, entry in SCHEDULERS.items() if entry.class_name == class_name]
    if not candidates:
        supported = ", ".join(sorted({entry.class_name for entry in SCHEDULERS.values()}))
        message = f"scheduler class {class_name!r} is not supported; supported: {supported}"
        raise ValueError(message)
    algorithm = config.get("algorithm_type")
    exact = [
        id_ for id_ in candidates if SCHEDULERS[id_].options.get("algorithm_type") == algorithm
    ]
    return SchedulerChoice(id=(exact or candidates)[0])
