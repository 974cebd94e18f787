"""The Stable Diffusion 1.x and 2.x family: one CLIP text encoder, a UNet, an autoencoder.

Does what ``StableDiffusionPipeline`` does, cut at the denoising step. ``dropped_text`` and
``latent_shape`` may be called on any thread, everything else on the device thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput

from latentwire_server.models.backends import DenoiserBackend, PreparedUnet
from latentwire_server.models.model import Conditioning, DenoiserInput
from latentwire_server.models.precision import dtype_name, to_device
from latentwire_server.models.prompt_reader import (
    PLAIN_PROMPTS,
    Chunk,
    PromptOptions,
    PromptReader,
    weighed,
)
from latentwire_server.models.schedulers import DiffusersScheduler
from latentwire_server.models.unet import UnetInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from transformers import CLIPTextModel, CLIPTokenizer

    from latentwire_server.models.info import ModelInfo, SchedulerChoice
    from latentwire_server.models.model import SafetyChecker

FAMILY: Final = "stable-diffusion"
TILED_ABOVE: Final = 1024
"""Pictures with a longer side are decoded in tiles, as the pipeline's ``enable_vae_tiling`` does:
the decoder's memory grows with the area, and takes more than the denoiser's from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentProjection:
    """A linear map from latents to RGB in [-1, 1], good enough for previews."""

    factors: Sequence[Sequence[float]]
    """One (red, green, blue) per latent channel."""
    bias: Sequence[float] = (0.0, 0.0, 0.0)


STABLE_DIFFUSION_1: Final = LatentProjection(
    factors=(
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)
"""The autoencoder of Stable Diffusion 1.x and 2.x, as ComfyUI's latent formats publish it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """The parts of a loaded model, in evaluation mode and on the device."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    scheduler_config: Mapping[str, object]
    projection: LatentProjection = STABLE_DIFFUSION_1
    safety_checker: SafetyChecker | None = None
    prompt_options: PromptOptions = PLAIN_PROMPTS


class StableDiffusion:
    """A loaded Stable Diffusion model."""

    def __init__(
        self,
        info: ModelInfo,
        components: Components,
        *,
        backend: DenoiserBackend = DenoiserBackend.EAGER,
    ) -> None:
        """Takes parts that are already on their device.

        Raises:
            BackendError: the backend cannot be had here.
        """
        self._info = info
        self._parts = components
        self._unet = PreparedUnet(components.unet, backend=backend)
        self._device: torch.device = components.unet.device
        self._dtype: torch.dtype = components.unet.dtype
        self._vae_scale_factor = vae_scale_factor(components.vae)
        config = components.unet.config
        self._num_mask_channels: int = config.in_channels - config.out_channels
        projection = components.projection
        self._factors = torch.tensor(projection.factors, device=self._device)
        self._bias = torch.tensor(projection.bias, device=self._device).view(3, 1, 1)
        # Rust tokenizers raise "Already borrowed" when two threads use one at the same time.
        self._tokenizer_lock = threading.Lock()
        options = components.prompt_options
        self._reader = PromptReader(components.tokenizer, options, lock=self._tokenizer_lock)
        self._reads_plainly = options.are_plain

    @property
    def info(self) -> ModelInfo:
        """What the model is and can do."""
        return self._info

    @property
    def device_name(self) -> str:
        """The device that computes."""
        return str(self._device)

    @property
    def dtype_name(self) -> str:
        """The number format that the denoiser computes in."""
        return dtype_name(self._dtype)

    @property
    def backend_name(self) -> str:
        """How the denoiser is run."""
        return self._unet.backend.value

    @property
    def sees_masks(self) -> bool:
        """Whether the denoiser is made for inpainting, and takes ``mask_latents``."""
        return self._num_mask_channels > 0

    @property
    def compiled_shapes(self) -> tuple[str, ...]:
        """The input shapes that the denoiser is compiled for."""
        return self._unet.shapes

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """Who says which pictures are withheld; None: nobody."""
        return self._parts.safety_checker

    @torch.inference_mode()
    def prepare(self, num_rows: int) -> None:
        """Compiles for calls of so many rows at the model's own size, if the backend compiles."""
        defaults = self._info.defaults
        shape = self.latent_shape(width=defaults.width, height=defaults.height)
        generator = torch.Generator().manual_seed(0)
        text = self.encode_prompt("", clip_skip=0)
        self._unet.prepare(
            self._input(
                DenoiserInput(
                    latents=torch.randn((num_rows, *shape), generator=generator),
                    timesteps=torch.linspace(0, 999, num_rows).round(),
                    conditioning=[text] * num_rows,
                )
            )
        )

    def dropped_text(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that the text encoder does not read, or ``""``."""
        if not self._reads_plainly:
            return self._reader.dropped(prompt)
        tokenizer = self._parts.tokenizer
        with self._tokenizer_lock:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            # The last place belongs to the end-of-text token.
            dropped = ids[tokenizer.model_max_length - 1 : -1]
            return str(tokenizer.decode(dropped)).strip() if dropped else ""

    def num_chunks(self, prompt: str) -> int:
        """Returns how often the text encoder must be asked to read ``prompt``."""
        return 1 if self._reads_plainly else self._reader.num_chunks(prompt)

    def latent_shape(self, *, width: int, height: int) -> tuple[int, int, int]:
        """Returns (channels, height, width) of the latents of one image."""
        channels: int = self._parts.unet.config.out_channels
        return channels, height // self._vae_scale_factor, width // self._vae_scale_factor

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt as ``StableDiffusionPipeline.encode_prompt`` does."""
        if self._reads_plainly:
            embeds = self._embeds(*self._tokenize(prompt), clip_skip=clip_skip)
        else:
            chunks = self._reader.chunks(prompt, num_chunks=num_chunks)
            read = [self._embeds(*self._on_device(chunk), clip_skip=clip_skip) for chunk in chunks]
            embeds = weighed(torch.cat(read), [w for chunk in chunks for w in chunk.weights])
        return Conditioning(prompt_embeds=embeds.to(self._dtype))

    def _embeds(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None, *, clip_skip: int
    ) -> torch.Tensor:
        """Returns what the text encoder makes of (1, tokens): (tokens, features)."""
        encoder = self._parts.text_encoder
        if clip_skip == 0:
            embeds: torch.Tensor = encoder(tokens, attention_mask=attention_mask)[0]
        else:
            states = encoder(tokens, attention_mask=attention_mask, output_hidden_states=True)
            # transformers 5 has the layers on the model itself, 4 one level down.
            text_model = getattr(encoder, "text_model", encoder)
            embeds = text_model.final_layer_norm(states.hidden_states[-(clip_skip + 1)])
        return embeds[0]

    def create_scheduler(
        self, choice: SchedulerChoice, *, num_inference_steps: int, num_skipped: int = 0
    ) -> DiffusersScheduler:
        """Makes a scheduler for one trajectory from the model's own scheduler configuration."""
        return DiffusersScheduler(
            choice,
            self._parts.scheduler_config,
            num_inference_steps=num_inference_steps,
            num_skipped=num_skipped,
        )

    @torch.inference_mode()
    def encode_image(self, image: torch.Tensor) -> VaePosterior:
        """Encodes one picture, (1, 3, height, width) float32 in [-1, 1]."""
        vae = self._parts.vae
        vae.use_tiling = max(image.shape[-2:]) > TILED_ABOVE
        encoded = vae.encode(to_device(image, self._device).to(vae.dtype))
        return VaePosterior(encoded, scaling_factor=vae.config.scaling_factor)

    @torch.inference_mode()
    def denoise(self, rows: DenoiserInput) -> torch.Tensor:
        """Predicts noise (or velocity) for each row, (rows, channels, height, width) float32."""
        return self._unet(self._input(rows)).float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes one image, (3, height, width) float32 in [0, 1]."""
        vae = self._parts.vae
        side = max(latents.shape[-2:]) * self._vae_scale_factor
        vae.use_tiling = side > TILED_ABOVE
        scaled = latents.to(self._device, vae.dtype) / vae.config.scaling_factor
        image: torch.Tensor = vae.decode(scaled, return_dict=False)[0][0].float()
        # clamp keeps NaN, and turns infinity into a colour: that must stay visible.
        return torch.where(image.isfinite(), (image / 2 + 0.5).clamp(0, 1), image)

    @torch.inference_mode()
    def project_preview(self, latents: torch.Tensor) -> torch.Tensor:
        """Projects the latents of one image linearly to RGB, (3, height, width) in [0, 1]."""
        rgb = torch.einsum("chw,cr->rhw", latents[0].float(), self._factors) + self._bias
        return (rgb / 2 + 0.5).clamp(0, 1)

    def _input(self, rows: DenoiserInput) -> UnetInput:
        latents = rows.latents.to(self._device, self._dtype)
        if self.sees_masks:
            latents = torch.cat([latents, self._mask_latents(rows)], dim=1)
        return UnetInput(
            latents=latents,
            timesteps=to_device(rows.timesteps, self._device),
            prompt_embeds=torch.stack([row.prompt_embeds for row in rows.conditioning]),
        )

    def _mask_latents(self, rows: DenoiserInput) -> torch.Tensor:
        """Returns (rows, 1 + channels, height, width), in the denoiser's dtype."""
        shape = self._num_mask_channels, *rows.latents.shape[-2:]
        nothing_seen = torch.zeros(shape, device=self._device)
        nothing_seen[0] = 1
        given = [row.mask_latents for row in rows.conditioning]
        stacked = torch.stack([nothing_seen if own is None else own for own in given])
        return stacked.to(self._device, self._dtype)

    def _tokenize(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokenizer = self._parts.tokenizer
        with self._tokenizer_lock:
            encoded = tokenizer(
                prompt,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        return self._with_mask(encoded.input_ids, encoded.attention_mask)

    def _on_device(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._with_mask(chunk.tokens, chunk.attention_mask)

    def _with_mask(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Stable Diffusion 2.x asks for the mask, 1.x attends to the padding too.
        uses_mask = getattr(self._parts.text_encoder.config, "use_attention_mask", False)
        mask = to_device(attention_mask, self._device) if uses_mask else None
        return to_device(tokens, self._device), mask


class VaePosterior:
    """What an autoencoder makes of a picture: a distribution, or with a tiny one just latents."""

    def __init__(
        self, encoded: AutoencoderKLOutput | AutoencoderTinyOutput, *, scaling_factor: float
    ) -> None:
        """Takes what the autoencoder's ``encode`` returned."""
        self._encoded = encoded
        self._scaling_factor = scaling_factor

    @torch.inference_mode()
    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Returns latents, (1, channels, height, width) float32."""
        if isinstance(self._encoded, AutoencoderTinyOutput):
            latents = self._encoded.latents
        else:
            latents = self._encoded.latent_dist.sample(generator)
        scaled: torch.Tensor = latents * self._scaling_factor
        return scaled.float()


def vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Returns how many pixels one latent is wide."""
    num_halvings = len(vae.config.block_out_channels) - 1
    return 1 << num_halvings
