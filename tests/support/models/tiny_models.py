"""Small random Stable Diffusion models in the real file formats, made in a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

WORDS = ("a", "red", "green", "blue", "circle", "square", "on", "background", "small", "left", "of")
WIDTH = 32
NATIVE_LATENTS = 8
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
"""The latents', a mask, and the masked image's latents."""

SD15_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_folder(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    variant: str | None = None,
    max_shard_size: str | int = "10GB",
    vae: str = "AutoencoderKL",
    in_channels: int = LATENT_CHANNELS,
) -> Path:
    """Writes a diffusers folder and returns it."""
    parts = build_parts(
        folder, prediction_type=prediction_type, seed=seed, vae=vae, in_channels=in_channels
    )
    pipeline = pipeline_of(parts)
    if variant == "fp16":
        pipeline = pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    return folder


def pipeline_of(parts: dict[str, Any]) -> Any:
    """Returns diffusers' pipeline for such parts."""
    is_inpainting = parts["unet"].config.in_channels == INPAINTING_CHANNELS
    kind = diffusers.StableDiffusionPipeline
    if is_inpainting:
        kind = diffusers.StableDiffusionInpaintPipeline
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def build_parts(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    vae: str = "AutoencoderKL",
    in_channels: int = LATENT_CHANNELS,
) -> dict[str, Any]:
    """Returns the parts of a model with random weights, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer(folder)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=NATIVE_LATENTS,
            in_channels=in_channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=2,
            cross_attention_dim=WIDTH,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        return {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder.eval(),
            "unet": unet.eval(),
            "vae": _vae(vae).eval(),
            "scheduler": diffusers.PNDMScheduler(**SD15_SCHEDULER, prediction_type=prediction_type),
        }


def build_safety_parts(*, unsafe: np.ndarray, safe: np.ndarray) -> dict[str, Any]:
    """Returns a safety checker with random weights that flags one image and not the other.

    Args:
        unsafe: (height, width, 3) uint8.
        safe: as large.
    """
    side = 32
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=8,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        config = CLIPConfig(vision_config=vision.to_dict(), projection_dim=16)
        checker = StableDiffusionSafetyChecker(config).eval()
        checker.visual_projection.weight.normal_()
        images = [Image.fromarray(unsafe), Image.fromarray(safe)]
        pixels = processor(images, return_tensors="pt").pixel_values
        embeds = checker.visual_projection(checker.vision_model(pixels)[1])
        flagged, harmless = torch.nn.functional.normalize(embeds)
        # The part that only the unsafe image has: the safe one is orthogonal to it.
        concept = flagged - (flagged @ harmless) * harmless
        checker.concept_embeds[0] = concept
        checker.concept_embeds_weights[0] = concept.norm() / 2
    return {"safety_checker": checker, "feature_extractor": processor}


def _vae(class_name: str) -> torch.nn.Module:
    if class_name == "AutoencoderTiny":
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
        )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    )
    # A random decoder's images are grey; this makes them differ enough to be compared.
    vae.decoder.conv_out.weight.data *= 4
    return vae


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes and loads a byte-pair tokenizer that knows a few words, and every letter."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces = ["".join(pieces[:2]), *pieces[2:]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    source = folder / "tokenizer"
    source.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(
        str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=77
    )
