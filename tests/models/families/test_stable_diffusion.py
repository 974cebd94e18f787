"""The Stable Diffusion family against diffusers' own pipeline, piece by piece."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch

from latentwire_server.models.model_options import ModelEntry
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from tests.support.models.folders import load_model
from tests.support.models.tiny_models import build_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.families.stable_diffusion import StableDiffusion

PROMPTS = [
    "",
    "a red circle on a blue background",
    "Ünknown (wörds:1.3) [🙂]",
    "small circle " * 60,
]


@pytest.fixture(scope="module", params=["AutoencoderKL", "AutoencoderTiny"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("tiny"), vae=request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    return load_model(ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    # transformers 5 has the layers on the model itself; the pipeline looks for them one level down.
    pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
    return pipeline


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_encoded_as_the_pipeline_encodes_it(
    model: StableDiffusion,
    pipeline: diffusers.StableDiffusionPipeline,
    prompt: str,
    clip_skip: int,
) -> None:
    expected, _ = pipeline.encode_prompt(
        prompt, "cpu", 1, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    ours = model.encode_prompt(prompt, clip_skip=clip_skip).prompt_embeds
    assert ours.shape == (77, 32)
    assert torch.equal(ours, expected[0])


def test_the_attention_mask_is_used_if_the_encoder_requires_it(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = model.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    monkeypatch.setattr(
        model._parts.text_encoders[0].module.config, "use_attention_mask", True, raising=False
    )
    masked = model.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    assert not torch.equal(without, masked)


def test_text_beyond_75_tokens_is_dropped(model: StableDiffusion) -> None:
    words = ["small", "circle"] * 50
    # 77 tokens less start and end: 75 words of one token each fit.
    assert model.dropped_text(" ".join(words[:75])) == ""
    assert model.dropped_text(" ".join(words)) == " ".join(words[75:])


def test_dropped_text_is_thread_safe(model: StableDiffusion) -> None:
    failures: list[Exception] = []

    def ask() -> None:
        try:
            for number in range(30):
                model.dropped_text("small circle " * number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        model.encode_prompt("a red circle", clip_skip=0)
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (7, 13), (1, 1)])
def test_any_multiple_of_the_autoencoders_factor_can_be_generated(
    model: StableDiffusion,
    pipeline: diffusers.StableDiffusionPipeline,
    height: int,
    width: int,
) -> None:
    shape = model.latent_shape(width=8 * width, height=8 * height)
    assert shape == (4, height, width)
    latents = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    embeds = model.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    predicted = model.denoise(
        DenoiserInput(
            latents=latents,
            timesteps=torch.tensor([500.0]),
            conditioning=[Conditioning(prompt_embeds=embeds)],
        )
    )
    with torch.inference_mode():
        expected = pipeline.unet(latents, 500, encoder_hidden_states=embeds[None])[0]
    assert torch.allclose(predicted, expected, atol=1e-5)


def test_latents_are_decoded_as_the_pipeline_decodes_them(
    model: StableDiffusion, pipeline: diffusers.StableDiffusionPipeline
) -> None:
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor)[0]
    expected = pipeline.image_processor.postprocess(decoded, output_type="pt")[0]
    assert torch.allclose(model.decode(latents).clamp(0, 1), expected, atol=1e-5)


def test_infinity_stays_visible_in_decoded_pixels(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = torch.zeros(1, 3, 8, 8)
    poisoned[0, 0, 0, 0] = torch.inf
    monkeypatch.setattr(model._parts.vae, "decode", lambda *_, **__: (poisoned,))
    assert not torch.isfinite(model.decode(torch.zeros(1, 4, 1, 1))).all()


def test_a_preview_follows_the_folders_own_projection(folder: Path) -> None:
    red = {"latent_rgb_factors": [[1, 0, 0]] + [[0, 0, 0]] * 3, "latent_rgb_bias": [0, -1, 1]}
    path = folder / "preview.json"
    path.write_text(json.dumps(red))
    try:
        source = ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32")
        preview = load_model(source).project_preview(torch.ones(1, 4, 2, 3))
    finally:
        path.unlink()
    assert torch.equal(preview[:, 0, 0], torch.tensor([1.0, 0.0, 1.0]))
    assert preview.shape == (3, 2, 3)
