"""Stable Diffusion 1.5 as it is built, with random weights: speed does not depend on what they say.

Made once, in the user's cache folder; never committed. float16 files, as models are published.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentwire_server.models.model_options import EMBEDDED_FOLDER
from latentwire_server.settings.files import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CLIP_VOCABULARY: Final = 49408
_RECIPE: Final = 1
"""Of this file: another number, another folder."""


def model_folder(name: str) -> Path:
    """Returns the folder of a benchmark model, made first if need be."""
    if name == "embedded":
        return EMBEDDED_FOLDER
    folder = user_cache() / "benchmarks" / f"{name}-{_RECIPE}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _BUILDERS[name](partial)
        partial.rename(folder)
    return folder


def _build_sd15(folder: Path) -> None:
    torch.manual_seed(0)
    # The dtype first: in float32 the parts would take 4 GB more while they are made.
    torch.set_default_dtype(torch.float16)
    try:
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,  # the number of heads, in spite of its name
        )
        vae = AutoencoderKL(
            sample_size=512,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=_CLIP_VOCABULARY,
                hidden_size=768,
                intermediate_size=3072,
                projection_dim=768,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    finally:
        torch.set_default_dtype(torch.float32)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        # OpenAI's vocabulary is not ours to ship; which numbers the words get costs no time.
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer"),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


_BUILDERS: Final[dict[str, Callable[[Path], None]]] = {"sd15": _build_sd15}
