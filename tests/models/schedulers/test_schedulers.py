"""Samplers: every id and spacing, against exact noise and against diffusers' own predictions."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

from latentwire_server.models.info import SchedulerChoice
from latentwire_server.models.schedulers.diffusers_scheduler import DiffusersScheduler
from latentwire_server.models.schedulers.sampler_table import (
    SCHEDULERS,
    SIGMAS_FLAGS,
    choice_of,
    scheduler_infos,
)

STABLE_DIFFUSION_15 = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
VELOCITY = {
    **STABLE_DIFFUSION_15,
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
CONFIGS = {"epsilon": STABLE_DIFFUSION_15, "velocity": VELOCITY}
EVERY = [
    pytest.param(SchedulerChoice(id=info.id, sigmas=sigmas), id=f"{info.id}-{sigmas}")
    for info in scheduler_infos()
    for sigmas in info.sigmas
]
SHAPE = (1, 4, 4, 4)


def exact_prediction(
    scheduler: DiffusersScheduler, scaled: torch.Tensor, original: torch.Tensor, position: int
) -> torch.Tensor:
    """Returns the prediction of a perfect model, from the noise level that diffusers documents.

    In the scaled space every scheduler adds ``(1 - alpha²)`` noise; alpha² is read off the training
    schedule at the evaluation's own, possibly fractional, timestep.
    """
    inner = scheduler._scheduler
    if hasattr(inner, "sigmas"):
        sigmas = ((1 - inner.alphas_cumprod) / inner.alphas_cumprod) ** 0.5
        # Every class interpolates timesteps in log sigma: the inverse of its _sigma_to_t.
        timestep = scheduler.timestep(position)
        low = int(timestep)
        high = min(low + 1, len(sigmas) - 1)
        weight = timestep - low
        log_sigma = (1 - weight) * sigmas[low].log() + weight * sigmas[high].log()
        alpha_squared = 1 / (1 + log_sigma.exp() ** 2)
    else:
        alpha_squared = inner.alphas_cumprod[int(scheduler.timestep(position))]
    alpha, sigma = alpha_squared**0.5, (1 - alpha_squared) ** 0.5
    noise = (scaled - alpha * original) / sigma
    if inner.config["prediction_type"] == "epsilon":
        return noise
    return alpha * noise - sigma * original


def run(scheduler: DiffusersScheduler) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Samples with a perfect model; returns the original, the end, the worst predicted original."""
    generator = torch.Generator().manual_seed(1)
    original = torch.randn(SHAPE, generator=generator).clamp(-1, 1)
    latents = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    worst = 0.0
    for position in range(scheduler.num_evaluations):
        scaled = scheduler.scale_model_input(latents, position)
        predicted = exact_prediction(scheduler, scaled, original, position)
        # A failed tick is gathered again, so scaling twice must give the same.
        assert torch.equal(scaled, scheduler.scale_model_input(latents, position))
        guess = scheduler.predicted_original(predicted, latents, position)
        worst = max(worst, (guess - original).abs().max().item())
        latents = scheduler.step(predicted, latents, position, generators=[generator])
        assert latents.dtype is torch.float32
    return original, latents, worst


def test_the_scheduler_ids_are_the_documented_ones() -> None:
    promised = "ddim ddpm pndm lms euler euler-a heun dpm2 dpm2-a dpmpp-2m dpmpp-2m-sde dpmpp-sde"
    assert set(SCHEDULERS) == {*promised.split(), "unipc", "deis", "lcm", "tcd"}


def test_every_listed_spacing_changes_the_timesteps() -> None:
    """A flag that diffusers ignored would give the default timesteps."""
    for info in scheduler_infos():
        made = {
            sigmas: DiffusersScheduler(
                SchedulerChoice(id=info.id, sigmas=sigmas),
                STABLE_DIFFUSION_15,
                num_inference_steps=20,
            )
            for sigmas in info.sigmas
        }
        timesteps = {tuple(one._scheduler.timesteps.tolist()) for one in made.values()}
        assert len(timesteps) == len(info.sigmas), info.id


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
@pytest.mark.parametrize("choice", EVERY)
def test_with_exact_noise_the_predicted_original_is_the_original_at_every_evaluation(
    choice: SchedulerChoice, kind: str
) -> None:
    scheduler = DiffusersScheduler(choice, CONFIGS[kind], num_inference_steps=6)
    original, end, worst = run(scheduler)
    # Timesteps are rounded to whole ones by most spacings, and levels are not.
    assert worst < 0.15
    assert (end - original).abs().max() < 0.3


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
@pytest.mark.parametrize("id_", ["ddim", "ddpm", "euler", "euler-a", "lms", "heun", "lcm", "tcd"])
def test_the_predicted_original_matches_diffusers_where_it_returns_one(id_: str, kind: str) -> None:
    choice = SchedulerChoice(id=id_)
    ours = DiffusersScheduler(choice, CONFIGS[kind], num_inference_steps=6)
    theirs = getattr(diffusers, SCHEDULERS[id_].class_name).from_config(CONFIGS[kind])
    theirs.set_timesteps(6)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(SHAPE, generator=generator) * ours.init_noise_sigma
    num_compared = 0
    for position, timestep in enumerate(theirs.timesteps):
        output = torch.randn(SHAPE, generator=generator)
        theirs.scale_model_input(latents, timestep)
        # As in the pipeline, whose eta is always 0.
        options: dict[str, Any] = {"generator": torch.Generator().manual_seed(3), "eta": 0.0}
        accepted = inspect.signature(theirs.step).parameters
        options = {name: value for name, value in options.items() if name in accepted}
        result = theirs.step(output, timestep, latents, **options)
        guess = ours.predicted_original(output, latents, position)
        expected = getattr(result, "pred_original_sample", None)
        if expected is not None:
            num_compared += 1
            assert torch.allclose(guess, expected, rtol=1e-3, atol=1e-3)
        ours.scale_model_input(latents, position)
        latents = ours.step(
            output, latents, position, generators=[torch.Generator().manual_seed(3)]
        )
        assert torch.equal(latents, result.prev_sample)
    assert num_compared == len(theirs.timesteps) or id_ in {"heun", "lcm", "tcd"}


@pytest.mark.parametrize("choice", EVERY)
def test_any_number_of_steps_works(choice: SchedulerChoice) -> None:
    for steps in (1, 2, 3, 7):
        _, end, _ = run(DiffusersScheduler(choice, STABLE_DIFFUSION_15, num_inference_steps=steps))
        assert torch.isfinite(end).all(), steps


@pytest.mark.parametrize("id_", ["lcm", "tcd"])
def test_a_distilled_sampler_takes_no_more_steps_than_it_was_distilled_for(id_: str) -> None:
    choice = SchedulerChoice(id=id_)
    DiffusersScheduler(choice, STABLE_DIFFUSION_15, num_inference_steps=50)
    with pytest.raises(ValueError, match=f"{id_}.*cannot take 51 steps"):
        DiffusersScheduler(choice, STABLE_DIFFUSION_15, num_inference_steps=51)


@pytest.mark.parametrize("choice", EVERY)
def test_images_take_their_noise_from_their_own_generators(choice: SchedulerChoice) -> None:
    """Two images in lockstep are the two images alone."""
    alone = [_random_walk(choice, seeds=[seed]) for seed in (5, 6)]
    together = _random_walk(choice, seeds=[5, 6])
    assert torch.equal(together, torch.cat(alone))


def _random_walk(choice: SchedulerChoice, *, seeds: list[int]) -> torch.Tensor:
    scheduler = DiffusersScheduler(choice, STABLE_DIFFUSION_15, num_inference_steps=4)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.cat([torch.randn(SHAPE, generator=one) for one in generators])
    latents = latents * scheduler.init_noise_sigma
    for position in range(scheduler.num_evaluations):
        scaled = scheduler.scale_model_input(latents, position)
        latents = scheduler.step(scaled * 0.5, latents, position, generators=generators)
    return latents


@pytest.mark.parametrize(
    ("config", "id_"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp-2m"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp-2m-sde",
        ),
        ({"_class_name": "DPMSolverSinglestepScheduler"}, "dpmpp-sde"),
        ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, "dpm2-a"),
    ],
)
def test_a_models_own_scheduler_has_an_id(config: dict[str, object], id_: str) -> None:
    assert choice_of(config) == SchedulerChoice(id=id_)


def test_a_models_own_spacing_is_the_default_and_can_be_overridden() -> None:
    config = {**STABLE_DIFFUSION_15, "use_karras_sigmas": True}
    made = {
        sigmas: DiffusersScheduler(
            SchedulerChoice(id="euler", sigmas=sigmas), config, num_inference_steps=5
        )._scheduler.timesteps.tolist()
        for sigmas in ("default", *SIGMAS_FLAGS)
    }
    assert made["default"] == made["karras"]
    assert made["exponential"] != made["karras"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (SchedulerChoice(id="Euler"), "there is no scheduler 'Euler'"),
        (SchedulerChoice(id="ddim", sigmas="karras"), "ddim has no sigmas 'karras'"),
        (SchedulerChoice(id="euler", sigmas=""), "euler has no sigmas ''"),
    ],
)
def test_an_unlisted_scheduler_or_spacing_is_refused(choice: SchedulerChoice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersScheduler(choice, STABLE_DIFFUSION_15, num_inference_steps=4)
