"""Small random Stable Diffusion XL models, base and refiner, in the real file formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.models.tiny_models import (
    INPAINTING_CHANNELS,
    NATIVE_LATENTS,
    WIDTH,
    build_parts,
)

if TYPE_CHECKING:
    from pathlib import Path

SECOND_WIDTH = 48
PROJECTION_WIDTH = 40
TIME_ID_WIDTH = 8

XL_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def build_xl_folder(
    folder: Path,
    *,
    is_refiner: bool = False,
    seed: int = 0,
    variant: str | None = None,
    max_shard_size: str | int = "10GB",
    force_zeros: bool = True,
    in_channels: int = 4,
) -> Path:
    """Writes a diffusers folder whose images depend strongly on all inputs of its UNet."""
    parts = build_xl_parts(folder, is_refiner=is_refiner, seed=seed, in_channels=in_channels)
    if is_refiner:
        parts |= {"tokenizer": None, "text_encoder": None, "requires_aesthetics_score": True}
    kind: Any = diffusers.StableDiffusionXLPipeline
    if is_refiner:
        kind = diffusers.StableDiffusionXLImg2ImgPipeline
    elif in_channels == INPAINTING_CHANNELS:
        kind = diffusers.StableDiffusionXLInpaintPipeline
    pipeline = kind(**parts, force_zeros_for_empty_prompt=force_zeros, add_watermarker=False)
    if variant == "fp16":
        pipeline = pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    return folder


def build_xl_parts(
    folder: Path, *, is_refiner: bool = False, seed: int = 0, in_channels: int = 4
) -> dict[str, Any]:
    """Returns the parts of a base model, or those from which a refiner takes some."""
    shared = build_parts(folder, seed=seed)
    files = folder / "tokenizer"
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return {
            **shared,
            "tokenizer_2": CLIPTokenizer(
                str(files / "vocab.json"),
                str(files / "merges.txt"),
                model_max_length=77,
                # Differs from the first one, as in the published model.
                pad_token="!",
            ),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=len(shared["tokenizer"]),
                    hidden_size=SECOND_WIDTH,
                    intermediate_size=2 * SECOND_WIDTH,
                    num_hidden_layers=3,
                    num_attention_heads=2,
                    max_position_embeddings=77,
                    projection_dim=PROJECTION_WIDTH,
                    hidden_act="gelu",
                    bos_token_id=shared["tokenizer"].bos_token_id,
                    eos_token_id=shared["tokenizer"].eos_token_id,
                    pad_token_id=0,
                )
            ).eval(),
            "unet": _unet(is_refiner=is_refiner, in_channels=in_channels).eval(),
            "scheduler": diffusers.EulerDiscreteScheduler(**XL_SCHEDULER),
        }


def _unet(*, is_refiner: bool, in_channels: int) -> torch.nn.Module:
    num_ids = 5 if is_refiner else 6
    unet = diffusers.UNet2DConditionModel(
        sample_size=NATIVE_LATENTS,
        in_channels=in_channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=SECOND_WIDTH if is_refiner else WIDTH + SECOND_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TIME_ID_WIDTH * num_ids + PROJECTION_WIDTH,
    )
    # With random weights the conditioning has little effect, and mistakes in it would not show.
    for name, parameter in unet.named_parameters():
        if any(part in name for part in ("time_emb", "attn2", "add_embedding")):
            parameter.data *= 3
    return unet
