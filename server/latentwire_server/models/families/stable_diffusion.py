"""The Stable Diffusion 1.x and 2.x family: one CLIP text encoder, a UNet, an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.architectures.family import Family, TextEncoderKind
from latentwire_server.models.architectures.unet_model import UnetModel
from latentwire_server.models.components.autoencoder import LatentProjection
from latentwire_server.models.protocol import Conditioning

if TYPE_CHECKING:
    from latentwire_server.models.text.clip_encoder import EncoderOutput


class StableDiffusion(UnetModel):
    """A loaded model; computes what ``StableDiffusionPipeline`` computes."""

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt as ``StableDiffusionPipeline.encode_prompt`` does."""
        (encoder,) = self._parts.text_encoders

        def embeds(output: EncoderOutput) -> torch.Tensor:
            if clip_skip == 0:
                return output.last_hidden_state
            # transformers 5 has the layers on the model itself, 4 one level down.
            text_model = getattr(encoder.module, "text_model", encoder.module)
            layer = output.hidden_states[-(clip_skip + 1)]
            normalised: torch.Tensor = text_model.final_layer_norm(layer)
            return normalised

        encoded = encoder.encode(prompt, num_chunks=num_chunks)
        return Conditioning(prompt_embeds=encoded.embeds(embeds).to(self._dtype))


FAMILY: Final = Family(
    name="stable-diffusion",
    model=StableDiffusion,
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
    ),
    text_encoders=(TextEncoderKind(class_name="CLIPTextModel"),),
    # "text" is no further condition: the UNet pools the prompt's embeddings itself.
    addition_embed_types=(None, "text"),
    single_file_pipeline="StableDiffusionPipeline",
    single_file_marker="cond_stage_model.",
    single_file_options={"safety_checker": None},
    # For the autoencoder of Stable Diffusion 1.x and 2.x, from ComfyUI's latent formats.
    projection=LatentProjection(
        factors=(
            (0.3512, 0.2297, 0.3227),
            (0.3250, 0.4974, 0.2350),
            (-0.2829, 0.1762, 0.2721),
            (-0.2120, -0.2616, -0.7177),
        )
    ),
)
