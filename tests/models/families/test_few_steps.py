"""Models distilled to generate in few steps, and Stable Diffusion 2, against diffusers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from latentwire_server.models.errors import BackendError
from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    largest_difference,
)
from tests.support.models.tiny_models import SD15_SCHEDULER, WIDTH, build_parts, pipeline_of
from tests.support.models.tiny_xl_models import XL_SCHEDULER, build_xl_parts

if TYPE_CHECKING:
    from pathlib import Path


def given(unet: Any) -> dict[str, Any]:
    """Returns the configuration without the list of the values that were defaults."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def with_embedded_guidance(unet: Any) -> Any:
    """Returns a copy of a UNet that takes the guidance scale as an input."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        changed = diffusers.UNet2DConditionModel.from_config(
            {**given(unet), "time_cond_proj_dim": 17}
        )
    changed.load_state_dict(unet.state_dict(), strict=False)
    changed.time_embedding.cond_proj.weight.data *= 10
    return changed.eval()


@pytest.fixture(scope="module")
def consistency_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lcm")
    parts = build_parts(folder)
    parts["unet"] = with_embedded_guidance(parts["unet"])
    parts["scheduler"] = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    diffusers.LatentConsistencyModelPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


CONSISTENT = [
    Case(name="scale 8.5", scheduler="lcm", num_inference_steps=4, guidance_scale=8.5, seed=1),
    Case(name="scale 3", scheduler="lcm", num_inference_steps=2, guidance_scale=3.0, num_images=2),
    Case(name="scale 1", scheduler="lcm", num_inference_steps=4, guidance_scale=1.0, seed=1),
]


def test_a_consistency_model_embeds_the_guidance_scale(consistency_folder: Path) -> None:
    model = load_model(source_of(consistency_folder))
    defaults = model.info.defaults
    assert (defaults.scheduler.id, defaults.num_inference_steps) == ("lcm", 4)
    assert (defaults.guidance_scale, model.info.guidance_is_embedded) == (8.5, True)
    pipeline = diffusers.LatentConsistencyModelPipeline.from_pretrained(
        consistency_folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    generated = EngineImages(model=model).crowd(*CONSISTENT)
    for case in CONSISTENT:
        generators = [
            torch.Generator("cpu").manual_seed(case.seed + index)
            for index in range(case.num_images)
        ]
        images = pipeline(
            **case.arguments, num_images_per_prompt=case.num_images, generator=generators
        ).images
        expected = [np.asarray(image).astype(np.int16) for image in images]
        assert largest_difference(generated[case.name], expected) <= TOLERANCE, case.name
    assert generated["scale 8.5"] != generated["scale 1"]


def test_a_consistency_model_is_not_compiled(consistency_folder: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(BackendError, match="takes the guidance scale"):
        load_model(source_of(consistency_folder, denoiser_backend="openvino"))
    model = load_model(source_of(consistency_folder, denoiser_backend="auto"))
    assert model.backend_name == "eager"


def test_an_xl_model_may_embed_the_guidance_scale_too(tmp_path: Path) -> None:
    parts = build_xl_parts(tmp_path)
    parts["unet"] = with_embedded_guidance(parts["unet"])
    parts["scheduler"] = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(tmp_path)
    generated = EngineImages(model=load_model(source_of(tmp_path))).crowd(*CONSISTENT)
    oracle = Oracle(tmp_path, pipelines=STABLE_DIFFUSION_XL)
    for case in CONSISTENT:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_turbo_model_generates_in_few_steps_without_guidance(tmp_path: Path, kind: str) -> None:
    parts = build_xl_parts(tmp_path)
    spacing = {**XL_SCHEDULER, "timestep_spacing": "trailing"}
    parts["scheduler"] = getattr(diffusers, kind)(**spacing)
    pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(source_of(tmp_path))
    defaults = model.info.defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (4, 1.0)
    for num_steps in (1, 4):
        case = Case(
            name="few",
            scheduler=defaults.scheduler.id,
            num_inference_steps=num_steps,
            guidance_scale=defaults.guidance_scale,
        )
        (files,) = EngineImages(model=model).alone(case).values()
        # With the scheduler that the folder names, as it is.
        image = pipeline(
            case.prompt,
            num_inference_steps=num_steps,
            guidance_scale=0.0,
            width=case.width,
            height=case.height,
            generator=torch.Generator("cpu").manual_seed(case.seed),
        ).images[0]
        assert largest_difference(files, [np.asarray(image).astype(np.int16)]) <= TOLERANCE


def test_stable_diffusion_2_is_the_same_family(tmp_path: Path) -> None:
    """OpenCLIP's encoder without its last layer, velocity, attention heads by level."""
    parts = build_parts(tmp_path, prediction_type="v_prediction")
    tokenizer = parts["tokenizer"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts["text_encoder"] = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                hidden_act="gelu",
                projection_dim=2 * WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
            )
        ).eval()
        changes = {"attention_head_dim": [2, 4], "use_linear_projection": True}
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(
            {**given(parts["unet"]), **changes}
        ).eval()
    options = {**SD15_SCHEDULER, "prediction_type": "v_prediction"}
    del options["skip_prk_steps"]
    parts["scheduler"] = diffusers.DDIMScheduler(**options)
    pipeline_of(parts).save_pretrained(tmp_path)
    model, oracle = load_model(source_of(tmp_path)), Oracle(tmp_path)
    assert (model.info.family, model.info.defaults.guidance_scale) == ("stable-diffusion", 7.5)
    cases = [
        Case(name=scheduler, scheduler=scheduler, num_images=2, negative_prompt="a blue square")
        for scheduler in (model.info.defaults.scheduler.id, "euler", "dpmpp-2m")
    ]
    generated = EngineImages(model=model).crowd(*cases)
    for case in cases:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )
