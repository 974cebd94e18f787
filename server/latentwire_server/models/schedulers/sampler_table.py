"""The table of samplers: kebab-case ids, diffusers' classes and their options."""

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
"""Spacing of noise levels to the configuration flag that asks for it. At most one may be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)
    evaluations_per_step: int = 1
    max_inference_steps: int | None = None


SCHEDULERS: Final[Mapping[str, _Kind]] = {
    "ddim": _Kind(class_name="DDIMScheduler"),
    "ddpm": _Kind(class_name="DDPMScheduler"),
    "pndm": _Kind(class_name="PNDMScheduler", options={"skip_prk_steps": True}),
    "lms": _Kind(class_name="LMSDiscreteScheduler"),
    "euler": _Kind(class_name="EulerDiscreteScheduler"),
    "euler-a": _Kind(class_name="EulerAncestralDiscreteScheduler"),
    "heun": _Kind(class_name="HeunDiscreteScheduler", evaluations_per_step=2),
    "dpm2": _Kind(class_name="KDPM2DiscreteScheduler", evaluations_per_step=2),
    "dpm2-a": _Kind(class_name="KDPM2AncestralDiscreteScheduler", evaluations_per_step=2),
    "dpmpp-2m": _Kind(
        class_name="DPMSolverMultistepScheduler", options={"algorithm_type": "dpmsolver++"}
    ),
    "dpmpp-2m-sde": _Kind(
        class_name="DPMSolverMultistepScheduler", options={"algorithm_type": "sde-dpmsolver++"}
    ),
    # Not DPMSolverSDEScheduler: its noise comes from a Brownian tree with a seed of its own, so
    # the images of one request could not each follow their own generator.
    "dpmpp-sde": _Kind(
        class_name="DPMSolverSinglestepScheduler",
        # The class stops above zero by default, which leaves noise in the image; it can reach zero
        # only with the lower order at the end.
        options={
            "algorithm_type": "sde-dpmsolver++",
            "final_sigmas_type": "zero",
            "lower_order_final": True,
        },
    ),
    "unipc": _Kind(class_name="UniPCMultistepScheduler"),
    "deis": _Kind(class_name="DEISMultistepScheduler", options={"algorithm_type": "deis"}),
    # They pick from the 50 steps that their models were distilled on.
    "lcm": _Kind(class_name="LCMScheduler", max_inference_steps=50),
    "tcd": _Kind(class_name="TCDScheduler", max_inference_steps=50),
}


def scheduler_infos() -> tuple[SchedulerInfo, ...]:
    """Returns the samplers that every noise-predicting model has."""
    return tuple(
        SchedulerInfo(
            id=id_,
            sigmas=("default", *_spacings(kind)),
            evaluations_per_step=kind.evaluations_per_step,
            max_inference_steps=kind.max_inference_steps,
        )
        for id_, kind in SCHEDULERS.items()
    )


def choice_of(config: Mapping[str, object]) -> SchedulerChoice:
    """Returns the sampler that a model's own scheduler configuration stands for.

    The spacing is ``"default"``: the configuration's own flags hold where a request names none.

    Raises:
        ValueError: the configuration names a class that is none of ours.
    """
    class_name = config.get("_class_name")
    candidates = [id_ for id_, kind in SCHEDULERS.items() if kind.class_name == class_name]
    if not candidates:
        known = ", ".join(sorted({kind.class_name for kind in SCHEDULERS.values()}))
        message = f"scheduler class {class_name!r} is not supported; supported: {known}"
        raise ValueError(message)
    algorithm = config.get("algorithm_type")
    exact = [
        id_ for id_ in candidates if SCHEDULERS[id_].options.get("algorithm_type") == algorithm
    ]
    return SchedulerChoice(id=(exact or candidates)[0])


def _spacings(kind: _Kind) -> tuple[str, ...]:
    parameters = _parameters(kind)
    return tuple(name for name, flag in SIGMAS_FLAGS.items() if flag in parameters)


def _parameters(kind: _Kind) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(diffusers, kind.class_name).__init__).parameters
