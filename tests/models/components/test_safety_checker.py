"""The model's own safety checker: it decides as in diffusers' pipeline, and is loaded as safely."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire_server.engine.events import FinishReason, Preview
from latentwire_server.engine.request import EventOptions, PreviewMethod
from latentwire_server.models.loading.inspection import downloaded_patterns
from tests.support.engine.driving import Driver, Result, pixels_of_file
from tests.support.engine.requests import request
from tests.support.models.folders import edit, load_model, refused, source_of
from tests.support.models.tiny_models import build_parts, build_safety_parts

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.models.protocol import DiffusionModel

ARGUMENTS = {"prompt": "a red circle", "num_inference_steps": 2, "guidance_scale": 3.0}
FIELDS = ARGUMENTS | {"model": "tiny", "scheduler": "pndm"}
SEED = 5
WEIGHTS = "safety_checker/model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A folder with a safety checker, and the pipeline's verdict on its images."""

    folder: Path
    images: list[np.ndarray]
    """Of three seeds, before the check."""
    are_flagged: list[bool]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    folder = tmp_path_factory.mktemp("checked")
    parts = build_parts(folder)
    images = generate(
        diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    ).images
    safety = build_safety_parts(unsafe=images[1], safe=images[0])
    diffusers.StableDiffusionPipeline(**parts, **safety).save_pretrained(folder)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return Checked(
        folder=folder,
        images=images,
        are_flagged=generate(pipeline).nsfw_content_detected,
    )


@pytest.fixture
def folder(checked: Checked, tmp_path: Path) -> Path:
    return shutil.copytree(checked.folder, tmp_path / "model")


def generate(pipeline: Any) -> Any:
    """Generates images for three seeds, (height, width, 3) uint8 each."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(SEED + index) for index in range(3)]
    output = pipeline(
        **ARGUMENTS, num_images_per_prompt=3, generator=generators, width=64, height=64
    )
    output.images = [np.asarray(image) for image in output.images]
    return output


def generate_with(model: DiffusionModel, wanted: GenerationRequest) -> Result:
    async def run() -> Result:
        driver = Driver(model)
        await driver.engine.start()
        try:
            return await driver.run(wanted)
        finally:
            await driver.engine.aclose()

    return asyncio.run(run())


def test_images_that_the_pipeline_flags_are_withheld_and_the_others_unchanged(
    checked: Checked,
) -> None:
    model = load_model(source_of(checked.folder))
    assert checked.are_flagged[:2] == [False, True]
    assert "safety-checker" in model.info.capabilities

    result = generate_with(model, request(seed=SEED, num_images=3, **FIELDS))

    assert result.is_complete, result.error
    reasons = [image.finish_reason for image in result.images]
    assert [reason is FinishReason.FILTERED for reason in reasons] == checked.are_flagged
    for image, expected in zip(result.images, checked.images, strict=True):
        if image.finish_reason is FinishReason.FILTERED:
            assert image.data == b""
        else:
            generated = pixels_of_file(image.data)
            assert np.abs(generated - expected.astype(np.int16)).max() <= 1


def test_a_model_with_a_checker_sends_no_previews_unless_allowed(checked: Checked) -> None:
    for method in PreviewMethod:
        events = EventOptions(preview_interval_steps=1, preview_method=method)
        wanted = request(seed=SEED, events=events, **FIELDS)
        for allowed in (False, True):
            source = source_of(checked.folder, unchecked_previews=allowed)
            result = generate_with(load_model(source), wanted)
            assert bool(result.of_kind(Preview)) == allowed


def test_a_disabled_checker_is_neither_loaded_nor_downloaded(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"no weights")
    model = load_model(source_of(folder, safety_checker=False))
    assert model.safety_checker is None
    assert "safety-checker" not in model.info.capabilities
    wanted, _ = downloaded_patterns(variant=None, with_safety_checker=False)
    assert not any("safety" in pattern or "feature" in pattern for pattern in wanted)


def test_a_checker_that_computes_nan_raises(folder: Path) -> None:
    checker = load_model(source_of(folder)).safety_checker
    assert checker is not None
    with torch.no_grad():
        checker._module.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="NaN"):
        checker.flags(np.zeros((64, 64, 3), np.uint8))


def test_a_checker_of_a_foreign_class_is_refused(folder: Path) -> None:
    index = folder / "model_index.json"
    for name, entry in {
        "safety_checker": ["my_module", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "AutoProcessor"],
    }.items():
        kept = index.read_text()
        edit(index, lambda content, name=name, entry=entry: content.update({name: entry}))
        refused(folder, because=f"{name} is .*safety_checker=false serves without")
        index.write_text(kept)


def test_a_pickled_checker_is_refused(folder: Path) -> None:
    torch.save({}, folder / "safety_checker" / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder, because="pytorch_model.bin is a pickle")


def test_a_checker_with_missing_or_non_finite_weights_is_refused(folder: Path) -> None:
    whole = load_file(folder / WEIGHTS)
    broken = {
        "has 1 missing tensors": {k: v for k, v in whole.items() if k != "concept_embeds"},
        "NaN or infinity in concept_embeds": whole
        | {"concept_embeds": torch.full_like(whole["concept_embeds"], float("nan"))},
    }
    for because, tensors in broken.items():
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        refused(folder, because=because)


def test_a_checker_for_images_of_another_size_is_refused(folder: Path) -> None:
    path = folder / "feature_extractor" / "preprocessor_config.json"
    edit(path, lambda config: config.update(crop_size={"height": 64, "width": 64}))
    refused(folder, because="safety checker fails")
