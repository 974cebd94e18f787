"""One trajectory's arithmetic, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from latentwire_server.engine.device.stepping import Step, step_together
from latentwire_server.engine.diffusion.phases import phases_of
from latentwire_server.engine.diffusion.trajectory import Prompts, Trajectory
from latentwire_server.engine.handover.generation import Generation
from latentwire_server.engine.handover.lifecycle import Stage
from latentwire_server.engine.policy.estimate import PhaseWork
from latentwire_server.engine.policy.policy import Group
from latentwire_server.models.protocol import Conditioning
from latentwire_server.models.schedulers.diffusers_scheduler import DiffusersScheduler
from latentwire_server.models.schedulers.sampler_table import SCHEDULERS
from tests.support.engine.requests import request
from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from latentwire_server.models.info import NoiseRange, SchedulerChoice


class RealSchedulers(FakeModel):
    """Steps with diffusers' own schedulers."""

    def create_scheduler(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> DiffusersScheduler:
        return DiffusersScheduler(
            choice,
            {"beta_schedule": "scaled_linear", "prediction_type": "epsilon"},
            num_inference_steps=num_inference_steps,
            num_skipped=num_skipped,
            noise_range=noise_range,
        )


def ready_trajectory(model_type: type[FakeModel] = FakeModel, **changes: object) -> Trajectory:
    wanted = request(**changes)
    generation = Generation(
        wanted,
        arrival=0,
        phases=[PhaseWork(group=Group(model="fake", height=8, width=8), num_evaluations=4)],
        on_change=lambda: None,
    )
    model = model_type()
    trajectory = Trajectory(generation, phases=phases_of(wanted, model))
    negative = model.encode_prompt(wanted.negative_prompt, clip_skip=0)
    prompts = Prompts(
        text=model.encode_prompt(wanted.prompt, clip_skip=0),
        negative=negative if wanted.uses_guidance else None,
        num_chunks=1,
    )
    trajectory.condition([prompts])
    return trajectory


def zeros(trajectory: Trajectory) -> torch.Tensor:
    return torch.zeros_like(trajectory.rows().latents)


def test_each_image_starts_from_the_noise_of_its_own_seed() -> None:
    trajectory = ready_trajectory(num_images=3, seed=5)
    alone = [ready_trajectory(seed=seed).latents[0] for seed in (5, 6, 7)]
    assert torch.equal(trajectory.latents, torch.stack(alone))
    generator = torch.Generator("cpu").manual_seed(5)
    assert torch.equal(alone[0][None], torch.randn((1, 4, 8, 8), generator=generator))


def test_unconditional_rows_come_first() -> None:
    rows = ready_trajectory(guidance_scale=2.0, num_images=2, negative_prompt="no").rows()
    assert rows.latents.shape == (4, 4, 8, 8)
    negative, text = rows.conditioning[0], rows.conditioning[2]
    assert [one is negative for one in rows.conditioning] == [True, True, False, False]
    assert [one is text for one in rows.conditioning] == [False, False, True, True]


def test_without_guidance_there_is_one_row_per_image() -> None:
    rows = ready_trajectory(guidance_scale=1.0, num_images=2).rows()
    assert (rows.latents.shape[0], len(rows.conditioning)) == (2, 2)


def test_rows_does_not_change_the_trajectory() -> None:
    trajectory = ready_trajectory(scheduler="heun")
    first, second = trajectory.rows(), trajectory.rows()
    assert torch.equal(first.latents, second.latents)
    assert (first.timestep, trajectory.position) == (second.timestep, 0)


def test_guidance_extrapolates_from_unconditional_to_conditional() -> None:
    trajectory = ready_trajectory(guidance_scale=3.0)
    latents = trajectory.latents
    noise_pred = trajectory.noise_pred(
        torch.stack([torch.full((4, 8, 8), 1.0), torch.full((4, 8, 8), 2.0)])
    )
    # 1 + 3 * (2 - 1)
    assert torch.equal(noise_pred, torch.full((1, 4, 8, 8), 4.0))
    assert torch.equal(trajectory.predicted_original(noise_pred), latents - 4.0)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("euler", [1, 2, 3, 4]), ("heun", [0, 1, 1, 2, 2, 3, 4])],
)
def test_steps_are_derived_from_evaluations(scheduler: str, expected: list[int]) -> None:
    trajectory = ready_trajectory(scheduler=scheduler, num_inference_steps=4)
    steps, fractions = [], [trajectory.fraction]
    while trajectory.stage is Stage.DENOISING:
        assert trajectory.step_after(1) == trajectory.step or trajectory.step_after(1) > 0
        trajectory.advance(zeros(trajectory))
        steps.append(trajectory.step)
        fractions.append(trajectory.fraction)
    assert steps == expected
    assert fractions == sorted(fractions)
    assert fractions[-1] < 1.0


def test_each_image_is_taken_once_for_decoding() -> None:
    trajectory = ready_trajectory(num_images=2, num_inference_steps=1)
    trajectory.advance(zeros(trajectory))
    assert trajectory.candidate.needs_decoding
    images = [trajectory.take_image() for _ in range(2)]
    assert torch.equal(torch.cat(images), trajectory.latents)
    assert trajectory.stage is Stage.DONE
    assert trajectory.fraction == 1.0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stepping_together_is_bit_identical_to_stepping_alone(scheduler: str) -> None:
    def three() -> list[Trajectory]:
        return [
            ready_trajectory(
                RealSchedulers,
                scheduler=scheduler,
                num_inference_steps=8,
                num_images=num_images,
                seed=seed,
                guidance_scale=guidance_scale,
            )
            for num_images, seed, guidance_scale in ((2, 5, 1.0), (1, 9, 3.0), (3, 1, 7.0))
        ]

    def prediction(trajectory: Trajectory) -> torch.Tensor:
        rows = trajectory.rows().latents
        shift = torch.arange(len(rows)).view(-1, 1, 1, 1)
        return (rows + shift).sin()

    together, alone = three(), three()
    for number in range(together[0].num_evaluations):
        for trajectory in alone:
            trajectory.advance(trajectory.noise_pred(prediction(trajectory)))
        # A trajectory that leaves and comes back still has its state.
        batch = together[:2] if number == 3 else together
        step_together([Step.of(one, prediction(one)) for one in batch])
        if batch is not together:
            together[2].advance(together[2].noise_pred(prediction(together[2])))
        for one, other in zip(together, alone, strict=True):
            assert one.step_key == other.step_key
            assert torch.equal(one.latents, other.latents)
    assert all(one.stage is Stage.DECODING for one in together)


def test_trajectories_of_different_sizes_are_in_different_groups() -> None:
    groups = {ready_trajectory().candidate.group, ready_trajectory(width=128).candidate.group}
    assert len(groups) == 2
    assert ready_trajectory(guidance_scale=5.0, scheduler="heun").candidate.group in groups


def test_conditioning_is_shared_by_all_images() -> None:
    trajectory = ready_trajectory(num_images=3)
    assert isinstance(trajectory.rows().conditioning[0], Conditioning)
    assert len(set(map(id, trajectory.rows().conditioning))) == 1
