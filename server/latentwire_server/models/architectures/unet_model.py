"""What all families with a UNet have in common: everything but the encoding of prompts.

Computes what their pipelines compute, divided into denoising steps. For threads see
``models/protocol.py``, whose docstrings apply here too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import torch

from latentwire_server.models.components.autoencoder import Autoencoder
from latentwire_server.models.components.placement import held_bytes
from latentwire_server.models.denoiser.backends import DenoiserBackend
from latentwire_server.models.denoiser.compiled_unet import CompiledUnet
from latentwire_server.models.denoiser.unet_call import UnetInput
from latentwire_server.models.errors import LoraError
from latentwire_server.models.precision import dtype_name, to_device
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from latentwire_server.models.schedulers.diffusers_scheduler import DiffusersScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latentwire_server.models.adapters.lora_networks import LoadedLoras, LoraStore
    from latentwire_server.models.components.autoencoder import VaePosterior
    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.info import ModelInfo, NoiseRange, SchedulerChoice
    from latentwire_server.models.protocol import SafetyChecker, Watermark


class UnetModel(ABC):
    """Implements ``DiffusionModel`` with a UNet; each family encodes prompts in its own way."""

    _may_encode_in_float32: ClassVar[bool] = False
    """Whether the family's pipelines obey an autoencoder's ``force_upcast`` in every dtype."""

    def __init__(
        self,
        info: ModelInfo,
        components: Components,
        *,
        backend: DenoiserBackend = DenoiserBackend.EAGER,
        cache: Path | None = None,
        refiner: UnetModel | None = None,
        loras: LoraStore | None = None,
    ) -> None:
        """Makes a model of parts that are on their device already.

        Args:
            info: What the model is and can do.
            components: Its parts.
            backend: How to run the denoiser.
            cache: Where converted denoisers are kept for the next start; None: nowhere.
            refiner: The model for the low noise levels.
            loras: The LoRAs that fit the model.

        Raises:
            BackendError: the backend is not available here, or not for this UNet.
        """
        self.info: Final = info
        self._parts = components
        self.refiner: Final = refiner
        self._loras = loras
        self._unet = CompiledUnet(components.unet, backend=backend, cache=cache)
        self._vae = Autoencoder(components.vae, may_encode_in_float32=self._may_encode_in_float32)
        config = components.unet.config
        self._num_mask_channels: int = config.in_channels - config.out_channels
        self._device: torch.device = components.unet.device
        self._dtype: torch.dtype = components.unet.dtype

    @abstractmethod
    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt, always alone, as the family's pipeline does."""

    def encode_negative_prompt(self, prompt: str, *, num_chunks: int = 1) -> Conditioning:
        """Encodes what guidance steers away from; ``clip_skip`` applies to the prompt alone."""
        return self.encode_prompt(prompt, clip_skip=0, num_chunks=num_chunks)

    @property
    def device_name(self) -> str:
        return str(self._device)

    @property
    def dtype_name(self) -> str:
        return dtype_name(self._dtype)

    @property
    def backend_name(self) -> str:
        return self._unet.backend.value

    @property
    def memory_bytes(self) -> int:
        models = [self] if self.refiner is None else [self, self.refiner]
        networks = [one for model in models for one in model._parts.networks.values()]  # noqa: SLF001
        checker = self._parts.safety_checker
        return (
            held_bytes(networks)
            + (0 if checker is None else checker.num_bytes)
            + sum(model._unet.programs_bytes for model in models)  # noqa: SLF001
        )

    @property
    def sees_masks(self) -> bool:
        return self._num_mask_channels > 0

    @property
    def compiled_shapes(self) -> tuple[str, ...]:
        return self._unet.shapes

    @property
    def safety_checker(self) -> SafetyChecker | None:
        return self._parts.safety_checker

    @property
    def watermark(self) -> Watermark | None:
        return self._parts.watermark

    @torch.inference_mode()
    def prepare(self, num_rows: int) -> None:
        defaults = self.info.defaults
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
        """Returns the end of ``prompt`` that the first text encoder does not read, or ``""``."""
        return self._parts.text_encoders[0].dropped(prompt)

    def num_chunks(self, prompt: str) -> int:
        return max(encoder.num_chunks(prompt) for encoder in self._parts.text_encoders)

    def latent_shape(self, *, width: int, height: int) -> tuple[int, int, int]:
        channels: int = self._parts.unet.config.out_channels
        factor = self._vae.scale_factor
        return channels, height // factor, width // factor

    def create_scheduler(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> DiffusersScheduler:
        return DiffusersScheduler(
            choice,
            self._parts.scheduler_config,
            num_inference_steps=num_inference_steps,
            num_skipped=num_skipped,
            noise_range=noise_range,
        )

    def with_loras(self, ids: Sequence[str]) -> LoadedLoras:
        """Loads LoRAs into twins of the networks; the model keeps its weights and its speed."""
        if self._loras is None:
            raise LoraError(ids[0], "the model has no LoRAs")
        # Compiled programs have no LoRAs: these calls run eagerly, as is the default.
        make_model = partial(type(self), self.info, refiner=self.refiner)
        return self._loras.load(ids, self._parts, make_model=make_model)

    @torch.inference_mode()
    def encode_image(self, image: torch.Tensor) -> VaePosterior:
        return self._vae.encode(image)

    @torch.inference_mode()
    def denoise(self, rows: DenoiserInput) -> torch.Tensor:
        return self._unet(self._input(rows)).float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._vae.decode(latents)

    @torch.inference_mode()
    def project_preview(self, latents: torch.Tensor) -> torch.Tensor:
        return self._parts.projection.project(latents.to(self._device))

    def _input(self, rows: DenoiserInput) -> UnetInput:
        latents = rows.latents.to(self._device, self._dtype)
        if self.sees_masks:
            latents = torch.cat([latents, self._mask_latents(rows)], dim=1)
        return UnetInput(
            latents=latents,
            timesteps=to_device(rows.timesteps, self._device),
            prompt_embeds=torch.stack([row.prompt_embeds for row in rows.conditioning]),
            timestep_cond=self._timestep_cond(rows),
        )

    def _timestep_cond(self, rows: DenoiserInput) -> torch.Tensor | None:
        """Returns the guidance scales, (rows, features), for a UNet that takes them."""
        num_features = self._parts.unet.config.time_cond_proj_dim
        if num_features is None:
            return None
        scales = [row.guidance_scale or 0.0 for row in rows.conditioning]
        return guidance_embedding(scales, num_features=num_features).to(self._device, self._dtype)

    def _mask_latents(self, rows: DenoiserInput) -> torch.Tensor:
        """Returns (rows, 1 + channels, height, width), in the denoiser's dtype."""
        shape = self._num_mask_channels, *rows.latents.shape[-2:]
        all_redrawn = torch.zeros(shape, device=self._device)
        all_redrawn[0] = 1
        masks = [row.mask_latents for row in rows.conditioning]
        stacked = torch.stack([all_redrawn if own is None else own for own in masks])
        return stacked.to(self._device, self._dtype)


def guidance_embedding(scales: Sequence[float], *, num_features: int) -> torch.Tensor:
    """Returns guidance scales as sines and cosines, (scales, num_features) float32.

    As ``LatentConsistencyModelPipeline`` does, from ``1000 * (scale - 1)``.
    """
    frequencies = torch.exp(
        torch.arange(num_features // 2, dtype=torch.float32)
        * (-math.log(10_000.0) / (num_features // 2 - 1))
    )
    angles = (torch.tensor(scales, dtype=torch.float32) - 1.0)[:, None] * 1000.0 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, num_features % 2))
