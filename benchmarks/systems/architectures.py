"""The models of the benchmarks: the embedded one, and Stable Diffusion 1.5 with random weights.

Speed does not depend on the values of the weights. The folder is made once, in the user's cache
folder, with files in float16, as models are published.
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
"""The version of this file's recipe; a new one makes a new folder."""


def model_folder(name: str) -> Path:
    """Returns the folder of a model, and makes it if it does not exist yet."""
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
    # Set before the parts are built: in float32 they would take 4 GB more meanwhile.
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
        # OpenAI's vocabulary is not ours to ship; token ids make no difference to speed.
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
