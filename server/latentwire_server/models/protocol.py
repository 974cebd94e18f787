"""The seam between the engine and a diffusion model.

Implemented by the families (``stable_diffusion.py``, ...) and by the tests' fake. Knows no engine.
Except where a docstring says otherwise, a method is called on the device thread only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from latentwire_server.models.info import ModelInfo, NoiseRange, SchedulerChoice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What steers one denoiser row: the encoded text, and the picture that is mended."""

    prompt_embeds: torch.Tensor
    """(tokens, features), in the denoiser's dtype and on its device."""
    mask_latents: torch.Tensor | None = None
    """For a denoiser that is made for inpainting, (1 + channels, height, width) float32: 1 where
    the picture is redrawn, and the latents of the rest. None: all is redrawn, and nothing seen."""
    pooled_prompt_embeds: torch.Tensor | None = None
    """(features,), a summary of the prompt, for a denoiser that takes one."""
    guidance_scale: float | None = None
    """For a denoiser that is told."""
    aesthetic_score: float | None = None
    """How beautiful the picture is to be, for a denoiser that is told."""

    @property
    def num_bytes(self) -> int:
        """What it takes on the device."""
        pooled = self.pooled_prompt_embeds
        return self.prompt_embeds.nbytes + (0 if pooled is None else pooled.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenoiserInput:
    """Rows of one denoiser call. Rows may differ in everything but their latent shape."""

    latents: torch.Tensor
    """(rows, channels, height, width) float32, already scaled by the scheduler."""
    timesteps: torch.Tensor
    """(rows,) float32."""
    conditioning: Sequence[Conditioning]
    """One per row."""


class SafetyChecker(Protocol):
    """Says which finished pictures are withheld."""

    @property
    def hides_previews(self) -> bool:
        """Whether previews are kept back, which could show what is withheld. Any thread."""

    @property
    def num_bytes(self) -> int:
        """What it takes on the device. Any thread."""

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Returns whether a picture, (height, width, 3) RGB, is to be withheld."""


class ImagePosterior(Protocol):
    """What an image may look like as latents."""

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Returns latents, (1, channels, height, width) float32, scaled as the denoiser's are."""


class StepScheduler(Protocol):
    """A diffusers scheduler at the service of one trajectory, whose state it holds."""

    @property
    def num_evaluations(self) -> int:
        """How many denoiser evaluations the trajectory needs in all."""

    @property
    def init_noise_sigma(self) -> float:
        """What unit noise is multiplied by to become the first latents."""

    @property
    def kind(self) -> Hashable:
        """Those of one kind and one model differ only in their state, and can step together."""

    def timestep(self, position: int) -> float:
        """Returns the timestep of evaluation ``position``."""

    def scale_model_input(self, latents: torch.Tensor, position: int) -> torch.Tensor:
        """Returns the latents as the denoiser wants them. Changes nothing that ``step`` reads."""

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, position: int) -> torch.Tensor:
        """Returns the latents of a picture as they are before evaluation ``position``.

        To be called once all steps before it are taken.
        """

    def predicted_original(
        self, noise_pred: torch.Tensor, latents: torch.Tensor, position: int
    ) -> torch.Tensor:
        """Returns the x₀ that ``noise_pred`` implies for unscaled ``latents``, before ``step``."""

    def step(
        self,
        noise_pred: torch.Tensor,
        latents: torch.Tensor,
        position: int,
        *,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Returns the latents of the next evaluation, (images, channels, height, width) float32."""

    def joined(self, others: Sequence[Self]) -> Self:
        """Returns one that steps for the images of this one and the others, and changes none.

        All must be of one kind and have taken equally many steps.
        """

    def take_back(self, joined: Self, *, images: slice) -> None:
        """Goes on from what has stepped for it among others; ``images`` are its own there."""


class Watermark(Protocol):
    """Something in a picture that programs find and people do not see. Device thread."""

    def applied(self, image: torch.Tensor) -> torch.Tensor:
        """Returns a picture, (3, height, width) float32 as ``decode`` gives it, with it."""


class AdapterSet(Protocol):
    """A model beside the one that it was made from, with adapters in its networks."""

    def scaled(self, scales: Mapping[str, float]) -> DiffusionModel:
        """Returns the model with its adapters at these scales, by id. Device thread.

        Several may be had at a time: each call of one computes at its own scales.
        """


class ModelSpec(Protocol):
    """What can be asked of a model before its weights are loaded. Any thread."""

    @property
    def info(self) -> ModelInfo:
        """What the model is and can do."""

    @property
    def refiner(self) -> ModelSpec | None:
        """Who may take the low noise levels; None: nobody."""

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """Who says which pictures are withheld; None: nobody."""

    def dropped_text(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that the encoder does not read, or ``""``."""

    def latent_shape(self, *, width: int, height: int) -> tuple[int, int, int]:
        """Returns (channels, height, width) of the latents of one image."""

    def create_scheduler(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> StepScheduler:
        """Makes a scheduler for one trajectory from the model's own configuration.

        Args:
            choice: Which sampler.
            num_inference_steps: How many steps its noise levels are spaced for.
            num_skipped: How many of them, the first, are not taken.
            noise_range: Which of the noise levels are taken; None: all. There may be none in it.

        Raises:
            ValueError: the model lists no such scheduler or spacing.
        """


class DiffusionModel(ModelSpec, Protocol):
    """A loaded model: turns text into conditioning, latents into noise predictions and pixels."""

    @property
    def refiner(self) -> DiffusionModel | None:
        """Who may take the low noise levels, in the same latents; None: nobody. Any thread.

        It has neither a safety checker nor a refiner, and its latents are decoded here.
        """

    @property
    def watermark(self) -> Watermark | None:
        """What is written into finished pictures; None: nothing. Any thread."""

    @property
    def device_name(self) -> str:
        """The device that computes, such as ``"cpu"`` or ``"cuda:0"``. Any thread."""

    @property
    def dtype_name(self) -> str:
        """The number format that the denoiser computes in, such as ``"float32"``. Any thread."""

    @property
    def backend_name(self) -> str:
        """How the denoiser is run, such as ``"eager"`` or ``"inductor"``. Any thread."""

    @property
    def memory_bytes(self) -> int:
        """What it takes on the device: its weights and compiled programs, the refiner's too.

        Any thread, and takes milliseconds.
        """

    @property
    def sees_masks(self) -> bool:
        """Whether the denoiser is made for inpainting, and takes ``mask_latents``. Any thread."""

    @property
    def compiled_shapes(self) -> tuple[str, ...]:
        """Input shapes that the denoiser is compiled for, as ``"8x4x64x64"``, or ``"any"``.

        Any thread.
        """

    def prepare(self, num_rows: int) -> None:
        """Compiles for calls of so many rows at the model's own size, if its backend compiles.

        Before the engine has the model: it may take minutes.
        """

    def num_chunks(self, prompt: str) -> int:
        """Returns how often the encoder must be asked to read ``prompt``: 1 if it may only once.

        Any thread.
        """

    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt, always alone, so that its result depends on nothing else.

        Args:
            prompt: What to encode.
            clip_skip: How many of the encoder's last layers are left out.
            num_chunks: How often the encoder is asked; what is left over of it reads nothing.
        """

    def encode_negative_prompt(self, prompt: str, *, num_chunks: int = 1) -> Conditioning:
        """Encodes, alone too, what guidance steers away from; ``""`` is nothing in particular."""

    def with_loras(self, ids: Sequence[str]) -> AdapterSet:
        """Loads adapters that the model lists; the model itself stays as it is. Any thread.

        Raises:
            LoraError: one cannot be used.
        """

    def encode_image(self, image: torch.Tensor) -> ImagePosterior:
        """Encodes one picture, always alone.

        Args:
            image: (1, 3, height, width) float32 in [-1, 1]; sides are multiples of the model's.
        """

    def denoise(self, rows: DenoiserInput) -> torch.Tensor:
        """Predicts noise (or velocity) for each row.

        Rows are independent: what one row holds, NaN included, never reaches another.

        Returns:
            (rows, channels, height, width) float32.
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes one image.

        Args:
            latents: (1, channels, height, width) float32.

        Returns:
            (3, height, width) float32, from 0 for black to 1 for the most of a colour; not clamped.
        """

    def project_preview(self, latents: torch.Tensor) -> torch.Tensor:
        """Projects the latents of one image linearly to RGB, almost for free.

        Args:
            latents: (1, channels, height, width) float32, a predicted x₀.

        Returns:
            (3, latent height, latent width) float32 in [0, 1].
        """
