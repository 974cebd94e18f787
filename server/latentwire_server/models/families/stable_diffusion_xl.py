"""The Stable Diffusion XL family: base models with two text encoders, refiners with the second.

Besides the prompt's embeddings the UNet takes the second encoder's summary of the prompt and a few
numbers: the image's size, where it was cropped from a larger one and, in a refiner, a score of its
beauty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.architectures.family import Family, TextEncoderKind
from latentwire_server.models.architectures.unet_model import UnetModel
from latentwire_server.models.components.autoencoder import LatentProjection
from latentwire_server.models.protocol import Conditioning

if TYPE_CHECKING:
    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.denoiser.unet_call import UnetInput
    from latentwire_server.models.protocol import DenoiserInput
    from latentwire_server.models.text.clip_encoder import EncoderOutput

AESTHETIC_SCORE: Final = 6.0
NEGATIVE_AESTHETIC_SCORE: Final = 2.5
"""The defaults of ``StableDiffusionXLImg2ImgPipeline``."""

_ZEROS: Final = "force_zeros_for_empty_prompt"
_SCORES: Final = "requires_aesthetics_score"


class StableDiffusionXL(UnetModel):
    """A loaded model; computes what ``StableDiffusionXLPipeline`` and its siblings compute."""

    _may_encode_in_float32 = True

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt as ``StableDiffusionXLPipeline.encode_prompt`` does."""
        return self._encoded(
            prompt, clip_skip=clip_skip, num_chunks=num_chunks, score=AESTHETIC_SCORE
        )

    @torch.inference_mode()
    def encode_negative_prompt(self, prompt: str, *, num_chunks: int = 1) -> Conditioning:
        """Encodes a negative prompt; an empty one is zeros if the model was trained with them."""
        encoded = self._encoded(
            prompt, clip_skip=0, num_chunks=num_chunks, score=NEGATIVE_AESTHETIC_SCORE
        )
        pooled = encoded.pooled_prompt_embeds
        if prompt or pooled is None or not self._parts.options[_ZEROS]:
            return encoded
        return Conditioning(
            prompt_embeds=torch.zeros_like(encoded.prompt_embeds),
            pooled_prompt_embeds=torch.zeros_like(pooled),
            aesthetic_score=encoded.aesthetic_score,
        )

    def _encoded(
        self, prompt: str, *, clip_skip: int, num_chunks: int, score: float
    ) -> Conditioning:
        encoded = [
            encoder.encode(prompt, num_chunks=num_chunks) for encoder in self._parts.text_encoders
        ]

        def embeds(output: EncoderOutput) -> torch.Tensor:
            # From the penultimate layer: the last one was trained for comparison with images.
            return output.hidden_states[-(clip_skip + 2)]

        prompt_embeds = [one.embeds(embeds) for one in encoded]
        # From the first chunk, where a prompt names its subject.
        pooled = encoded[-1].outputs[0].text_embeds[0]
        return Conditioning(
            prompt_embeds=torch.cat(prompt_embeds, dim=-1).to(self._dtype),
            pooled_prompt_embeds=pooled.to(self._dtype),
            aesthetic_score=score if self._parts.options[_SCORES] else None,
        )

    def _input(self, rows: DenoiserInput) -> UnetInput:
        conditioning = rows.conditioning
        pooled = [
            one.pooled_prompt_embeds for one in conditioning if one.pooled_prompt_embeds is not None
        ]
        factor = self._vae.scale_factor
        height, width = (side * factor for side in rows.latents.shape[-2:])
        return (
            super()
            ._input(rows)
            ._replace(
                text_embeds=torch.stack(pooled),
                # In the denoiser's dtype, as in the pipeline, where bfloat16 rounds sizes too.
                time_ids=torch.tensor(
                    [_time_ids(height, width, score=one.aesthetic_score) for one in conditioning],
                    dtype=self._dtype,
                    device=self._device,
                ),
            )
        )


def _time_ids(height: int, width: int, *, score: float | None) -> list[float]:
    """Returns the UNet's ``time_ids`` for an image of this size that is not cropped."""
    original_size, crop = (height, width), (0, 0)
    return [*original_size, *crop, *((height, width) if score is None else (score,))]


def _misfit(parts: Components) -> str | None:
    config, (*_, encoder) = parts.unet.config, parts.text_encoders
    num_ids = len(_time_ids(0, 0, score=0.0 if parts.options[_SCORES] else None))
    num_given = config.addition_time_embed_dim * num_ids + encoder.module.config.projection_dim
    num_taken = config.projection_class_embeddings_input_dim
    if num_taken != num_given:
        return (
            f"its UNet takes {num_taken} numbers besides the prompt, and {encoder.name} with"
            f" {_SCORES}={parts.options[_SCORES]} gives {num_given}"
        )
    return None


FAMILY: Final = Family(
    name="stable-diffusion-xl",
    model=StableDiffusionXL,
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    text_encoders=(
        TextEncoderKind(class_name="CLIPTextModel", is_optional=True),
        TextEncoderKind(class_name="CLIPTextModelWithProjection", suffix="_2"),
    ),
    options={_ZEROS: True, _SCORES: False},
    addition_embed_types=("text_time",),
    misfit=_misfit,
    # The only one of its pipelines with aesthetic scores; for base models and refiners.
    single_file_pipeline="StableDiffusionXLImg2ImgPipeline",
    single_file_marker="conditioner.embedders.",
    single_file_options={"add_watermarker": False},
    # From ComfyUI's latent formats.
    projection=LatentProjection(
        factors=(
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
        ),
        bias=(0.1084, -0.0175, -0.0011),
    ),
    upcasts_autoencoder=True,
    guidance_scale=5.0,
    # It was trained at about one megapixel, and generates patterns at a quarter of that.
    min_native_share=0.5,
)
