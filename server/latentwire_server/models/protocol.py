"""The interface between the engine and a diffusion model.

``ModelSpec`` is what can be asked of a model before its weights are loaded, ``DiffusionModel`` what
a loaded model does, and the rest what these two take and return. Implemented by the families and by
the tests' fake. Unless a docstring says otherwise, a method is called on the device thread only.
Must not know the engine.
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


class ModelSpec(Protocol):
    """A model without its weights: describes it and checks requests to it. Any thread."""

    @property
    def info(self) -> ModelInfo:
        """What the model is and can do."""

    @property
    def refiner(self) -> ModelSpec | None:
        """The model for the low noise levels, if there is one."""

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """Decides which images are withheld, if there is one."""

    def dropped_text(self, prompt: str) -> str:
        """Returns the end of ``prompt`` that the text encoder does not read, or ``""``."""

    def latent_shape(self, *, width: int, height: int) -> tuple[int, int, int]:
        """Returns (channels, height, width) of the latents of one image of this size in pixels."""

    def create_scheduler(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> StepScheduler:
        """Creates the scheduler of one trajectory from the model's own configuration.

        Args:
            choice: The scheduler and the spacing of its noise levels.
            num_inference_steps: The number of steps that the noise levels are spaced for.
            num_skipped: The number of steps left out at the start.
            noise_range: The noise levels to take; None: all. It may contain none.

        Raises:
            ValueError: the model has no such scheduler or spacing.
        """


class DiffusionModel(ModelSpec, Protocol):
    """A loaded model: turns text into conditioning, latents into noise predictions and pixels."""

    @property
    def refiner(self) -> DiffusionModel | None:
        """The model for the low noise levels, if there is one. Any thread.

        It shares the latents of this model, which also decodes them, and has neither a safety
        checker nor a refiner.
        """

    @property
    def watermark(self) -> Watermark | None:
        """Marks finished images, if the operator wants it. Any thread."""

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
        """The size of the weights and compiled programs on the device, the refiner's included.

        Any thread; takes milliseconds.
        """

    @property
    def compiled_shapes(self) -> tuple[str, ...]:
        """The input shapes with a compiled program: ``"8x4x64x64"`` or ``"any"``. Any thread."""

    @property
    def sees_masks(self) -> bool:
        """Whether the denoiser is made for inpainting and takes ``mask_latents``. Any thread."""

    def prepare(self, num_rows: int) -> None:
        """Compiles the denoiser for ``num_rows`` rows of the model's own size.

        Does nothing if its backend does not compile. Called before the engine has the model, as it
        may take minutes.
        """

    def num_chunks(self, prompt: str) -> int:
        """Returns how many chunks of the text encoder's size ``prompt`` takes. Any thread."""

    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        """Encodes one prompt, always alone, so that the result depends on nothing else.

        Args:
            prompt: The text.
            clip_skip: The number of the encoder's last layers to leave out.
            num_chunks: The number of chunks to encode; those beyond the prompt's end are empty.
        """

    def encode_negative_prompt(self, prompt: str, *, num_chunks: int = 1) -> Conditioning:
        """Encodes, also alone, what guidance steers away from; ``""`` stands for no prompt."""

    def encode_image(self, image: torch.Tensor) -> ImagePosterior:
        """Encodes one image, always alone.

        Args:
            image: (1, 3, height, width) float32 in [-1, 1]; its sides are multiples of
                ``info.limits.side_multiple``.
        """

    def denoise(self, rows: DenoiserInput) -> torch.Tensor:
        """Predicts the noise (or velocity) of each row.

        Rows are independent: the values of one row, NaN included, never reach another.

        Returns:
            (rows, channels, height, width) float32.
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes the latents of one image.

        Args:
            latents: (1, channels, height, width) float32.

        Returns:
            (3, height, width) float32, from 0 for black to 1 for full intensity; not clamped.
        """

    def project_preview(self, latents: torch.Tensor) -> torch.Tensor:
        """Projects the latents of one image linearly to RGB, at almost no cost.

        Args:
            latents: (1, channels, height, width) float32, a predicted x₀.

        Returns:
            (3, latent height, latent width) float32 in [0, 1].
        """

    def with_loras(self, ids: Sequence[str]) -> AdapterSet:
        """Loads LoRAs that the model lists; the model itself stays unchanged. Any thread.

        Raises:
            LoraError: one of them cannot be used.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenoiserInput:
    """The rows of one denoiser call. They may differ in everything but their latents' shape."""

    latents: torch.Tensor
    """(rows, channels, height, width) float32, already scaled by the scheduler."""
    timesteps: torch.Tensor
    """(rows,) float32."""
    conditioning: Sequence[Conditioning]
    """One per row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What steers one denoiser row: the encoded prompt and, for inpainting, the masked image."""

    prompt_embeds: torch.Tensor
    """(tokens, features), in the denoiser's dtype and on its device."""
    mask_latents: torch.Tensor | None = None
    """(1 + channels, height, width) float32, for a denoiser made for inpainting: 1 where the image
    is redrawn, and the latents of the rest. None: everything is redrawn, and nothing is seen."""
    pooled_prompt_embeds: torch.Tensor | None = None
    """(features,), a summary of the prompt, for a denoiser that takes one."""
    guidance_scale: float | None = None
    """For a denoiser that takes it as an input."""
    aesthetic_score: float | None = None
    """How beautiful the image shall be, for a denoiser that takes it as an input."""

    @property
    def num_bytes(self) -> int:
        """The size of the encoded prompt on the device."""
        pooled = self.pooled_prompt_embeds
        return self.prompt_embeds.nbytes + (0 if pooled is None else pooled.nbytes)


class StepScheduler(Protocol):
    """A diffusers scheduler with the state of one trajectory."""

    @property
    def num_evaluations(self) -> int:
        """The number of denoiser evaluations that the whole trajectory needs."""

    @property
    def init_noise_sigma(self) -> float:
        """The factor that turns unit noise into the initial latents."""

    @property
    def kind(self) -> Hashable:
        """Equal for schedulers that differ only in their state and can step together."""

    def timestep(self, position: int) -> float:
        """Returns the timestep of evaluation ``position``."""

    def scale_model_input(self, latents: torch.Tensor, position: int) -> torch.Tensor:
        """Returns the latents as the denoiser expects them. Changes nothing that ``step`` reads."""

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, position: int) -> torch.Tensor:
        """Returns an image's latents with the noise that they have before evaluation ``position``.

        Must be called after all steps before ``position``.
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
        """Returns the latents of the next evaluation.

        Args:
            noise_pred: (images, channels, height, width) float32, after guidance.
            latents: Of the same shape, unscaled.
            position: The number of the evaluation.
            generators: One per image, for schedulers that add noise.

        Returns:
            (images, channels, height, width) float32.
        """

    def joined(self, others: Sequence[Self]) -> Self:
        """Returns a scheduler for the images of this one and of the others, which stay unchanged.

        All must be of one ``kind`` and have taken equally many steps.
        """

    def take_back(self, joined: Self, *, images: slice) -> None:
        """Takes over the state of ``images``, its own, from a scheduler that ``joined`` made."""


class ImagePosterior(Protocol):
    """An encoded image: a distribution of latents."""

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Returns latents, (1, channels, height, width) float32, scaled for the denoiser."""


class SafetyChecker(Protocol):
    """Decides which finished images are withheld."""

    @property
    def hides_previews(self) -> bool:
        """Whether previews are held back, as they could show a withheld image. Any thread."""

    @property
    def num_bytes(self) -> int:
        """The size of its weights on the device. Any thread."""

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Returns whether an image, (height, width, 3) RGB, must be withheld."""


class Watermark(Protocol):
    """A mark in an image that programs find and people do not see."""

    def applied(self, image: torch.Tensor) -> torch.Tensor:
        """Returns an image, (3, height, width) float32 as ``decode`` returns it, with the mark."""


class AdapterSet(Protocol):
    """A model with LoRAs in its networks, beside the model that it was made from."""

    def scaled(self, scales: Mapping[str, float]) -> DiffusionModel:
        """Returns the model with its LoRAs at these scales, by id.

        Several may exist at a time: each call of one computes at its own scales.
        """
