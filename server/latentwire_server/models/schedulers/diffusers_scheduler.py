"""A diffusers scheduler with the state of one trajectory.

It is created from the model's own scheduler configuration with diffusers' ``from_config``, so that
its images are those of a pipeline whose scheduler was swapped in the documented way. Device thread
only.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Final, Protocol, Self, cast, runtime_checkable

import diffusers
import torch

from latentwire_server.models.info import NoiseRange, SchedulerChoice
from latentwire_server.models.schedulers.sampler_table import SCHEDULERS, SIGMAS_FLAGS

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence


_TWO_EVALUATIONS: Final = 2
_LATENTS_NDIM: Final = 4
"""Of the state that belongs to the images; tables of noise levels have one dimension."""


class _Scheduler(Protocol):
    """The common interface of these diffusers schedulers."""

    timesteps: torch.Tensor
    init_noise_sigma: torch.Tensor | float
    alphas_cumprod: torch.Tensor
    config: Mapping[str, object]

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor: ...

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor: ...

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        **options: object,
    ) -> tuple[torch.Tensor, ...]: ...


@runtime_checkable
class _HasBeginIndex(Protocol):
    def set_begin_index(self, begin_index: int = 0) -> None: ...


class DiffusersScheduler:
    """Implements ``StepScheduler`` with one of diffusers' schedulers."""

    def __init__(
        self,
        choice: SchedulerChoice,
        config: Mapping[str, object],
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> None:
        """Creates the scheduler from a model's configuration, as ``create_scheduler`` says.

        Raises:
            ValueError: there is no such scheduler or spacing, or it cannot take so many steps.
        """
        noise_range = noise_range or NoiseRange()
        self.kind: Hashable = (choice, num_inference_steps, num_skipped, noise_range)
        self._scheduler = _build(choice, config)
        self._entry = SCHEDULERS[choice.id]
        self._set_timesteps(choice, num_inference_steps)
        # Counted as the pipelines do: ours may begin in the middle of the scheduler's evaluations.
        self._begin, end = self._evaluations(noise_range, num_skipped=num_skipped)
        self._timesteps = self._scheduler.timesteps[self._begin : end]
        # Otherwise a scheduler searches its position by the first timestep, and finds the wrong one
        # where two are rounded to the same: 50 "beta" steps then end in an IndexError.
        if isinstance(self._scheduler, _HasBeginIndex):
            self._scheduler.set_begin_index(self._begin)
        accepted = inspect.signature(self._scheduler.step).parameters
        self._takes_generator = "generator" in accepted
        # As in StableDiffusionPipeline: eta is 0 if the scheduler has one.
        self._options: dict[str, object] = {"eta": 0.0} if "eta" in accepted else {}
        squares = [self._alpha_squared(position) for position in range(self.num_evaluations)]
        self._noise_levels: list[tuple[float, float]] = [
            (square**0.5, (1.0 - square) ** 0.5) for square in squares
        ]
        """(alpha, sigma) of each evaluation."""

    @property
    def num_evaluations(self) -> int:
        return len(self._timesteps)

    @property
    def init_noise_sigma(self) -> float:
        return float(self._scheduler.init_noise_sigma)

    def timestep(self, position: int) -> float:
        return float(self._timesteps[position])

    def scale_model_input(self, latents: torch.Tensor, position: int) -> torch.Tensor:
        return self._scheduler.scale_model_input(latents, self._timesteps[position])

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, position: int) -> torch.Tensor:
        return self._scheduler.add_noise(original, noise, self._timesteps[position : position + 1])

    def predicted_original(
        self, noise_pred: torch.Tensor, latents: torch.Tensor, position: int
    ) -> torch.Tensor:
        """Returns the x₀ that ``noise_pred`` implies for unscaled ``latents``.

        The scaled latents of every scheduler have the form ``alpha * x0 + sigma * noise`` with
        ``alpha**2 + sigma**2 == 1``, for which the prediction types are defined (Salimans & Ho,
        arXiv:2202.00512, appendix D).
        """
        sample = self.scale_model_input(latents, position)
        alpha, sigma = self._noise_levels[position]
        match self._scheduler.config["prediction_type"]:
            case "v_prediction":
                return alpha * sample - sigma * noise_pred
            case "sample":
                return noise_pred
            case _:
                return (sample - sigma * noise_pred) / max(alpha, 1e-4)

    def step(
        self,
        noise_pred: torch.Tensor,
        latents: torch.Tensor,
        position: int,
        *,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        options = dict(self._options)
        if self._takes_generator:
            options["generator"] = list(generators)
        stepped = self._scheduler.step(
            noise_pred,
            self._timesteps[position],
            latents,
            return_dict=False,
            **options,
        )
        return stepped[0].float()

    def __copy__(self) -> Self:
        """Returns a scheduler with a state of its own from the next step on."""
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self), _scheduler=copy.copy(self._scheduler))
        return twin

    @property
    def state(self) -> dict[str, object]:
        """The attributes of diffusers' scheduler."""
        return vars(self._scheduler)

    def joined(self, others: Sequence[Self]) -> Self:
        joined, states = copy.copy(self), [one.state for one in (self, *others)]
        joined.state.update(
            (name, _joined_values([state[name] for state in states])) for name in states[0]
        )
        return joined

    def take_back(self, joined: Self, *, images: slice) -> None:
        for name, value in joined.state.items():
            self.state[name] = _part_of(value, images)

    def _set_timesteps(self, choice: SchedulerChoice, num_inference_steps: int) -> None:
        try:
            self._scheduler.set_timesteps(num_inference_steps)
        except (ValueError, IndexError, ZeroDivisionError):
            message = (
                f"scheduler {choice.id} with sigmas {choice.sigmas}"
                f" cannot take {num_inference_steps} steps"
            )
            raise ValueError(message) from None

    def _evaluations(self, noise_range: NoiseRange, *, num_skipped: int) -> tuple[int, int]:
        """Returns the first evaluation, and the one after the last.

        A range is selected as by Stable Diffusion XL's pipelines for ``denoising_start`` and
        ``denoising_end``.
        """
        timesteps, per_step = self._scheduler.timesteps, self._entry.evaluations_per_step
        begin, end = num_skipped * per_step, len(timesteps)
        if noise_range.start > 0.0:
            num_left = int((timesteps < self._cutoff(noise_range.start)).sum())
            # Never begin in the middle of a step.
            num_left += per_step == _TWO_EVALUATIONS and num_left % per_step == 0
            begin = max(begin, end - num_left)
        if noise_range.end < 1.0:
            end = begin + int((timesteps[begin:] >= self._cutoff(noise_range.end)).sum())
        return begin, end

    def _cutoff(self, share: float) -> int:
        num_train_timesteps = cast("int", self._scheduler.config["num_train_timesteps"])
        return round(num_train_timesteps - share * num_train_timesteps)

    def _alpha_squared(self, position: int) -> float:
        sigmas = getattr(self._scheduler, "sigmas", None)
        if sigmas is None:
            return float(self._scheduler.alphas_cumprod[int(self.timestep(position))])
        position += self._begin
        # The second evaluations of dpm2's steps have noise levels of their own.
        between = getattr(self._scheduler, "sigmas_interpol", None)
        if between is not None and position % 2 == 1:
            is_ancestral = self._entry.class_name == "KDPM2AncestralDiscreteScheduler"
            sigmas, position = between, position - 1 if is_ancestral else position
        return 1.0 / (1.0 + float(sigmas[position]) ** 2)


def _build(choice: SchedulerChoice, config: Mapping[str, object]) -> _Scheduler:
    entry = SCHEDULERS.get(choice.id)
    if entry is None:
        message = f"there is no scheduler {choice.id!r}; allowed: {', '.join(SCHEDULERS)}"
        raise ValueError(message)
    options = dict(entry.options)
    if choice.sigmas != "default":
        spacings = entry.spacings
        if choice.sigmas not in spacings:
            allowed = ", ".join(("default", *spacings))
            message = f"scheduler {choice.id} has no sigmas {choice.sigmas!r}; allowed: {allowed}"
            raise ValueError(message)
        options.update({SIGMAS_FLAGS[spacing]: spacing == choice.sigmas for spacing in spacings})
    return cast("_Scheduler", getattr(diffusers, entry.class_name).from_config(config, **options))


def _joined_values(values: Sequence[object]) -> object:
    """Joins the values that one attribute has in several schedulers."""
    first = values[0]
    if isinstance(first, torch.Tensor) and first.ndim == _LATENTS_NDIM:
        return torch.cat(cast("list[torch.Tensor]", values))
    if isinstance(first, list):
        return [
            _joined_values(each) for each in zip(*cast("list[list[object]]", values), strict=True)
        ]
    return first


def _part_of(value: object, images: slice) -> object:
    """Returns the part of a joined attribute that belongs to some of the images."""
    if isinstance(value, torch.Tensor) and value.ndim == _LATENTS_NDIM:
        return value[images]
    if isinstance(value, list):
        return [_part_of(each, images) for each in value]
    return value
