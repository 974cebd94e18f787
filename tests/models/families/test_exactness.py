"""Alone or in a crowd, the engine generates the images of diffusers' own pipeline.

The fixtures compute every image once; the tests compare. Engines that are broken on purpose show
that the comparison notices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.device import denoising
from latentwire_server.engine.diffusion.trajectory import Trajectory
from latentwire_server.engine.errors import NonFiniteOutput
from latentwire_server.engine.request import GenerationRequest
from latentwire_server.engine.settings import Batching
from latentwire_server.models.components import autoencoder
from latentwire_server.models.model_options import ModelEntry
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from latentwire_server.models.schedulers.diffusers_scheduler import DiffusersScheduler
from tests.support.models.folders import load_model
from tests.support.models.oracle import (
    SCHEDULERS,
    SIDE,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from latentwire_server.models.protocol import DiffusionModel

pytestmark = [
    # A fixture generates a whole table of images for the first test that uses it.
    pytest.mark.timeout(300),
]


PROMPTS = ["a red circle", "a green star on a white background", "two blue squares", ""]

BY_SCHEDULER = [
    Case(
        name=scheduler,
        scheduler=scheduler,
        prompt=PROMPTS[number % len(PROMPTS)],
        num_inference_steps=4 + number % 2,
        # Every fourth one without guidance: one row instead of two.
        guidance_scale=1.0 if number % 4 == 3 else 3.0 + number % 5,
        seed=100 * number,
        num_images=2 if number % 8 == 5 else 1,
    )
    for number, scheduler in enumerate(SCHEDULERS)
]
CROWDS = [BY_SCHEDULER[:8], BY_SCHEDULER[8:]]

SPECIAL = [
    Case(name="negative prompt", negative_prompt="a blue square", guidance_scale=6.0),
    Case(name="guidance of 1", guidance_scale=1.0),
    Case(name="guidance of 0", guidance_scale=0.0, scheduler="ddim"),
    Case(name="clip skip", clip_skip=1),
    Case(name="three images", num_images=3, scheduler="euler-a"),
    Case(name="wide", width=2 * SIDE, scheduler="dpmpp-2m"),
    Case(name="tall", height=2 * SIDE, scheduler="heun"),
    Case(name="karras", sigmas="karras", scheduler="dpmpp-2m"),
    Case(name="exponential", sigmas="exponential", scheduler="euler"),
    Case(name="beta", sigmas="beta", scheduler="unipc"),
    Case(name="karras of euler", sigmas="karras", scheduler="euler"),
    Case(name="one step", num_inference_steps=1, scheduler="euler"),
    Case(name="long prompt", prompt="a red circle on a blue background " * 30),
]


def load(folder: Path) -> DiffusionModel:
    source = ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32")
    return load_model(source)


def names_of(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_model(folder: Path) -> DiffusionModel:
    return load(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture(scope="module")
def alone(tiny_model) -> dict[str, list[bytes]]:
    return EngineImages(model=tiny_model).alone(*BY_SCHEDULER)


@pytest.fixture(scope="module")
def crowd(tiny_model) -> dict[str, list[bytes]]:
    images = EngineImages(model=tiny_model)
    return images.crowd(*CROWDS[0]) | images.crowd(*CROWDS[1])


@pytest.fixture(scope="module")
def special(tiny_model) -> dict[str, list[bytes]]:
    return EngineImages(model=tiny_model).crowd(*SPECIAL)


@pytest.fixture(scope="module")
def reproducible_alone(tiny_model) -> dict[str, list[bytes]]:
    images = EngineImages(model=tiny_model, batching=Batching.REPRODUCIBLE, max_rows=4)
    return images.alone(*BY_SCHEDULER)


@pytest.fixture(scope="module")
def reproducible_crowd(tiny_model) -> dict[str, list[bytes]]:
    images = EngineImages(model=tiny_model, batching=Batching.REPRODUCIBLE, max_rows=4)
    return images.crowd(*CROWDS[0]) | images.crowd(*CROWDS[1])


def test_the_table_names_every_scheduler_of_the_model(tiny_model) -> None:
    assert {info.id for info in tiny_model.info.schedulers} == set(SCHEDULERS)


@pytest.mark.parametrize("case", BY_SCHEDULER, ids=names_of(BY_SCHEDULER))
def test_alone_it_generates_the_pipelines_images(oracle: Oracle, alone, case: Case) -> None:
    assert largest_difference(alone[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", BY_SCHEDULER, ids=names_of(BY_SCHEDULER))
def test_in_a_crowd_it_generates_the_pipelines_images(oracle: Oracle, crowd, case: Case) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", SPECIAL, ids=names_of(SPECIAL))
def test_every_argument_means_the_same_as_in_the_pipeline(
    oracle: Oracle, special, case: Case
) -> None:
    assert largest_difference(special[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", BY_SCHEDULER, ids=names_of(BY_SCHEDULER))
def test_reproducible_means_the_same_bytes_under_any_load(
    reproducible_alone, reproducible_crowd, case: Case
) -> None:
    assert reproducible_crowd[case.name] == reproducible_alone[case.name]


@pytest.mark.parametrize("case", BY_SCHEDULER, ids=names_of(BY_SCHEDULER))
def test_reproducible_images_match_the_pipeline(
    oracle: Oracle, reproducible_crowd, case: Case
) -> None:
    assert largest_difference(reproducible_crowd[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.fixture(scope="module")
def velocity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("velocity")
    return build_sensitive_folder(folder, prediction_type="v_prediction", seed=1)


V_CASES = [
    Case(name=f"v {scheduler}", scheduler=scheduler, seed=3, num_inference_steps=4)
    for scheduler in ("ddim", "euler", "dpmpp-2m", "unipc", "lcm")
]


def test_a_model_that_predicts_velocity_generates_the_pipelines_images(
    velocity_folder: Path,
) -> None:
    generated = EngineImages(model=load(velocity_folder)).crowd(*V_CASES)
    oracle = Oracle(velocity_folder)
    for case in V_CASES:
        difference = largest_difference(generated[case.name], oracle.generate(case))
        assert difference <= TOLERANCE, case


def test_a_large_image_is_decoded_in_tiles(
    folder: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = Case(name="small"), Case(name="large", width=2 * SIDE, height=2 * SIDE)
    oracle = Oracle(folder)
    whole = {case.name: oracle.generate(case) for case in (small, large)}
    oracle.decode_in_tiles()
    monkeypatch.setattr(autoencoder, "TILED_ABOVE", SIDE)
    generated = EngineImages(model=tiny_model).crowd(small, large)
    assert largest_difference(generated["large"], oracle.generate(large)) <= TOLERANCE
    assert largest_difference(generated["large"], whole["large"]) > TOLERANCE
    assert largest_difference(generated["small"], whole["small"]) <= TOLERANCE


def test_different_cases_give_different_images(oracle: Oracle) -> None:
    """Otherwise the comparisons above would pass for a model with a single image."""
    cases = [case for case in BY_SCHEDULER if case.num_images == 1]
    for index, case in enumerate(cases):
        for other in cases[:index]:
            first, second = oracle.generate(case)[0], oracle.generate(other)[0]
            assert abs(first - second).max() > 4 * TOLERANCE, (case, other)


VICTIMS = [
    Case(name="ancestral", scheduler="euler-a", num_images=2, guidance_scale=7.0),
    Case(name="guided", scheduler="ddim", guidance_scale=7.0, seed=5, prompt=PROMPTS[1]),
    Case(name="text only", scheduler="dpmpp-2m", guidance_scale=1.0, seed=9, prompt=PROMPTS[2]),
    # Steps together with the one before.
    Case(name="alike", scheduler="dpmpp-2m", guidance_scale=4.0, seed=3, num_images=2),
]


def test_nan_embeddings_end_one_trajectory_and_leave_the_others_bytes_unchanged(
    tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Case(name="bad", prompt="a small square", scheduler="heun")
    others = [replace(case, num_inference_steps=4) for case in VICTIMS]
    images = EngineImages(model=tiny_model, batching=Batching.REPRODUCIBLE, max_rows=4)
    clean = images.crowd(bad, *others)
    encode_prompt = tiny_model.encode_prompt

    def poisoned(prompt: str, **options: int) -> Conditioning:
        conditioning = encode_prompt(prompt, **options)
        if prompt != bad.prompt:
            return conditioning
        return Conditioning(prompt_embeds=conditioning.prompt_embeds * float("nan"))

    monkeypatch.setattr(tiny_model, "encode_prompt", poisoned)
    generated = images.crowd(bad, *others, failing={"bad": NonFiniteOutput})
    assert generated == {**clean, "bad": []}


def with_wrong_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = GenerationRequest.seeds.fget
    assert seeds is not None
    wrong = property(lambda self: tuple(seed + 1 for seed in seeds(self)))
    monkeypatch.setattr(GenerationRequest, "seeds", wrong)


def with_neighbours_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(*, latents, timesteps, conditioning) -> DenoiserInput:
        shifted = [*conditioning[1:], conditioning[0]]
        return DenoiserInput(latents=latents, timesteps=timesteps, conditioning=shifted)

    monkeypatch.setattr(denoising, "DenoiserInput", rolled)


def with_stale_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Trajectory.rows

    def stale(self: Trajectory) -> object:
        timestep = self.scheduler.timestep(max(0, self.position - 1))
        return replace(rows(self), timestep=timestep)

    monkeypatch.setattr(Trajectory, "rows", stale)


def with_neighbours_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    call = denoising.Denoiser._call

    def rolled(self: denoising.Denoiser, rows) -> list:
        predictions = call(self, rows)
        return [*predictions[1:], predictions[0]]

    monkeypatch.setattr(denoising.Denoiser, "_call", rolled)


def with_shared_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Trajectory.__init__

    def shared(self: Trajectory, *args: object, **options: object) -> None:
        init(self, *args, **options)
        self.generators = [self.generators[0]] * len(self.generators)

    monkeypatch.setattr(Trajectory, "__init__", shared)


def with_neighbours_state(monkeypatch: pytest.MonkeyPatch) -> None:
    take_back = DiffusersScheduler.take_back

    def others(self: DiffusersScheduler, joined: DiffusersScheduler, *, images: slice) -> None:
        del images
        take_back(self, joined, images=slice(0, 1))

    monkeypatch.setattr(DiffusersScheduler, "take_back", others)


@pytest.fixture(scope="module")
def intact(oracle: Oracle, tiny_model) -> dict[str, list[np.ndarray]]:
    """The expected images of the victims, which the intact engine generates too."""
    expected = {case.name: oracle.generate(case) for case in VICTIMS}
    for name, files in EngineImages(model=tiny_model).crowd(*VICTIMS).items():
        assert largest_difference(files, expected[name]) <= TOLERANCE
    return expected


@pytest.mark.parametrize(
    ("break_engine", "caught"),
    [
        (with_wrong_seed, ["ancestral", "guided", "text only"]),
        (with_neighbours_embeddings, ["ancestral", "guided"]),
        (with_stale_timestep, ["ancestral", "guided"]),
        (with_neighbours_prediction, ["ancestral", "guided", "text only"]),
        (with_shared_generator, ["ancestral"]),
        (with_neighbours_state, ["alike"]),
    ],
)
def test_a_broken_engine_is_caught(
    intact: dict[str, list[np.ndarray]],
    tiny_model,
    monkeypatch: pytest.MonkeyPatch,
    break_engine: Callable[[pytest.MonkeyPatch], None],
    caught: list[str],
) -> None:
    break_engine(monkeypatch)
    broken = EngineImages(model=tiny_model).crowd(*VICTIMS)
    for name in caught:
        assert largest_difference(broken[name], intact[name]) > TOLERANCE, name
