"""A fake model that computes its images by simple arithmetic, so that tests can predict them.

It implements the same protocol as the real models. Latents are pulled towards a colour that depends
on the prompt, and keep a trace of the seed's noise; decoding shows the first three channels. So an
image depends on its prompt and its seed, and ``expected_pixels`` computes it without the engine.

For tests it also logs every denoiser call, and has a barrier (``hold`` / ``release``) and faults.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from latentwire_server.models.info import (
    LoraInfo,
    ModelDefaults,
    ModelInfo,
    ModelLimits,
    NoiseRange,
    SchedulerChoice,
    SchedulerInfo,
)
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LATENT_CHANNELS = 4
SIZE_FACTOR = 8
MAX_WORDS = 75
TRACE = 0.05
"""How much of the first noise is left in the finished image."""
HOLD_TIMEOUT_S = scaled(30.0)
HELD_TOO_LONG = f"held for more than {HOLD_TIMEOUT_S} s"

Fault = tuple["Callable[[Call], bool]", "Callable[[torch.Tensor, Call], torch.Tensor]"]
"""A condition, and a function that changes the result of a call or raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One denoiser call."""

    number: int
    """Counted from 1."""
    prompts: tuple[str, ...]
    """One for each row, padding included."""
    timesteps: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        return len(self.prompts)


class FakeScheduler:
    """Shrinks the distance to the target by the same factor at each evaluation."""

    def __init__(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int,
        noise_range: NoiseRange,
        fault: Callable[[int], None],
    ) -> None:
        self._choice = choice
        self._fault = fault
        self.kind = choice, num_inference_steps, num_skipped, noise_range
        num_per_step = 2 if choice.id == "heun" else 1
        self._whole = num_per_step * num_inference_steps - (num_per_step - 1)
        first, end = round(noise_range.start * self._whole), round(noise_range.end * self._whole)
        self._begin = max(num_per_step * num_skipped, first)
        self.num_evaluations = max(0, end - self._begin)
        self.init_noise_sigma = 1.0

    def timestep(self, position: int) -> float:
        return 999.0 * (1 - (self._begin + position) / self._whole)

    def scale_model_input(self, latents: torch.Tensor, position: int) -> torch.Tensor:
        del position
        return latents

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, position: int) -> torch.Tensor:
        return original + noise * TRACE ** ((self._begin + position) / self._whole)

    def predicted_original(
        self, noise_pred: torch.Tensor, latents: torch.Tensor, position: int
    ) -> torch.Tensor:
        del position
        return latents - noise_pred

    def step(
        self,
        noise_pred: torch.Tensor,
        latents: torch.Tensor,
        position: int,
        *,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        self._fault(position)
        stepped = latents - noise_pred * (1 - TRACE ** (1 / self._whole))
        if self._choice.id == "euler-a":
            fresh = [torch.randn(latents.shape[1:], generator=one) for one in generators]
            stepped = stepped + 0.01 * torch.stack(fresh)
        return stepped

    def joined(self, others: Sequence[Self]) -> Self:
        assert all(other.kind == self.kind for other in others)
        return self

    def take_back(self, joined: Self, *, images: slice) -> None:
        pass


class FakePosterior:
    """An image's colours as latents, which the fake decoder turns back into the image."""

    def __init__(self, image: torch.Tensor) -> None:
        small = torch.nn.functional.avg_pool2d(image / 2 + 0.5, SIZE_FACTOR)
        unseen = torch.zeros_like(small[:, :1])
        self._latents = torch.cat([small, unseen], dim=1)

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        torch.randn(self._latents.shape, generator=generator)
        return self._latents


@dataclass(eq=False)
class FakeSafetyChecker:
    """Flags the images for whose number, counted from 1, ``rule`` returns true."""

    rule: Callable[[int], bool]
    hides_previews: bool = True
    num_bytes: int = 0
    seen: list[np.ndarray] = field(default_factory=list)

    def flags(self, pixels: np.ndarray) -> bool:
        self.seen.append(pixels)
        return self.rule(len(self.seen))


class FakeWatermark:
    """Inverts every colour."""

    def applied(self, image: torch.Tensor) -> torch.Tensor:
        return 1 - image


@dataclass(frozen=True)
class FakeAdapterSet:
    """Adapters without an effect; the model only records their scales."""

    model: FakeModel

    def scaled(self, scales: Mapping[str, float]) -> FakeModel:
        self.model.used_scales.append(scales)
        return self.model


@dataclass(eq=False)
class FakeModel:
    """Implements ``DiffusionModel``; its other public members are for tests."""

    id: str = "fake"
    device_name: str = "cpu"
    dtype_name: str = "float32"
    backend_name: str = "eager"
    memory_bytes: int = 0
    sees_masks: bool = False
    refiner: FakeModel | None = None
    compiled_shapes: tuple[str, ...] = ()
    safety_checker: FakeSafetyChecker | None = None
    high_resolution_fix: float | None = None
    """The default strength of its second pass; None: no second pass."""
    watermark: FakeWatermark | None = None
    call_s: float = 0.0
    """How long a denoiser call takes."""
    faults: list[Fault] = field(default_factory=list)
    decode_faults: list[Fault] = field(default_factory=list)
    encode_faults: list[Fault] = field(default_factory=list)
    scheduler_faults: dict[tuple[str, int], Exception] = field(default_factory=dict)
    """By scheduler id and position."""
    calls: list[Call] = field(default_factory=list)
    num_decodes: int = 0
    num_encoded_images: int = 0
    max_chunks: int = 1
    encoded_prompts: list[str] = field(default_factory=list)
    loras: tuple[LoraInfo, ...] = ()
    unfit_loras: Mapping[str, str] = field(default_factory=dict)
    used_scales: list[Mapping[str, float]] = field(default_factory=list)
    """The scales of the adapters, as requested; images do not depend on them."""

    def __post_init__(self) -> None:
        self._is_held = threading.Event()
        self._permits = threading.Semaphore(0)
        self._prompt_of: dict[bytes, str] = {}
        self._busy = threading.Lock()

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            id=self.id,
            display_name="Fake",
            family="fake",
            revision="sha256:fake",
            schedulers=(
                SchedulerInfo(id="euler", sigmas=("default", "karras")),
                SchedulerInfo(id="euler-a"),
                SchedulerInfo(id="heun", evaluations_per_step=2),
            ),
            limits=ModelLimits(max_side=1024, max_pixels=1024 * 1024, max_clip_skip=2),
            defaults=ModelDefaults(
                width=64,
                height=64,
                num_inference_steps=4,
                guidance_scale=2.0,
                scheduler=SchedulerChoice(id="euler"),
                high_noise_frac=None if self.refiner is None else 0.8,
                high_resolution_fix=self.high_resolution_fix,
            ),
            aliases=(f"{self.id}-alias",),
            capabilities=("image-to-image", "inpainting"),
            loras=self.loras,
            unfit_loras=self.unfit_loras,
        )

    def with_loras(self, ids: Sequence[str]) -> FakeAdapterSet:
        return FakeAdapterSet(self)

    def prepare(self, num_rows: int) -> None:
        if self.backend_name != "eager":
            self.compiled_shapes += (f"{num_rows}x{LATENT_CHANNELS}x8x8",)

    def dropped_text(self, prompt: str) -> str:
        return " ".join(prompt.split(" ")[self.max_chunks * MAX_WORDS :])

    def num_chunks(self, prompt: str) -> int:
        return min(self.max_chunks, -(-len(prompt.split(" ")) // MAX_WORDS))

    def latent_shape(self, *, width: int, height: int) -> tuple[int, int, int]:
        return (LATENT_CHANNELS, height // SIZE_FACTOR, width // SIZE_FACTOR)

    def encode_prompt(self, prompt: str, *, clip_skip: int, num_chunks: int = 1) -> Conditioning:
        self.encoded_prompts.append(prompt)
        colour = colour_of(prompt, clip_skip=clip_skip)
        embeds = torch.from_numpy(np.stack([colour] * num_chunks))
        call = Call(number=len(self.encoded_prompts), prompts=(prompt,), timesteps=())
        embeds = _with_faults(embeds, call, self.encode_faults)
        self._prompt_of[embeds.numpy().tobytes()] = prompt
        return Conditioning(prompt_embeds=embeds)

    def encode_negative_prompt(self, prompt: str, *, num_chunks: int = 1) -> Conditioning:
        return self.encode_prompt(prompt, clip_skip=0, num_chunks=num_chunks)

    def encode_image(self, image: torch.Tensor) -> FakePosterior:
        self.num_encoded_images += 1
        return FakePosterior(image)

    def create_scheduler(
        self,
        choice: SchedulerChoice,
        *,
        num_inference_steps: int,
        num_skipped: int = 0,
        noise_range: NoiseRange | None = None,
    ) -> FakeScheduler:
        known = {info.id: info.sigmas for info in self.info.schedulers}
        if choice.sigmas not in known.get(choice.id, ()):
            message = f"no such scheduler: {choice}"
            raise ValueError(message)

        def fault(position: int) -> None:
            error = self.scheduler_faults.get((choice.id, position))
            if error is not None:
                raise error

        return FakeScheduler(
            choice,
            num_inference_steps=num_inference_steps,
            num_skipped=num_skipped,
            noise_range=noise_range or NoiseRange(),
            fault=fault,
        )

    def denoise(self, rows: DenoiserInput) -> torch.Tensor:
        if not self._busy.acquire(blocking=False):
            message = "two simultaneous calls"
            raise AssertionError(message)
        try:
            return self._denoise(rows)
        finally:
            self._busy.release()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.num_decodes += 1
        image = latents[0, :3].repeat_interleave(SIZE_FACTOR, 1).repeat_interleave(SIZE_FACTOR, 2)
        call = Call(number=self.num_decodes, prompts=(), timesteps=())
        return _with_faults(image.clamp(0, 1), call, self.decode_faults)

    def project_preview(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[0, :3].clamp(0, 1)

    def hold(self) -> None:
        """Makes every denoiser call wait for ``release`` after logging it."""
        self._permits = threading.Semaphore(0)
        self._is_held.set()

    def release(self, num_calls: int = 1) -> None:
        """Lets ``num_calls`` held calls through."""
        self._permits.release(num_calls)

    def let_go(self) -> None:
        """Stops holding calls."""
        self._is_held.clear()
        self._permits.release(1000)

    def calls_with(self, prompt: str) -> list[Call]:
        """Returns the calls that had a row of ``prompt``."""
        return [call for call in list(self.calls) if prompt in call.prompts]

    def _denoise(self, rows: DenoiserInput) -> torch.Tensor:
        call = Call(
            number=len(self.calls) + 1,
            prompts=tuple(
                self._prompt_of.get(row.prompt_embeds.numpy().tobytes(), "?")
                for row in rows.conditioning
            ),
            timesteps=tuple(rows.timesteps.tolist()),
        )
        self.calls.append(call)
        if self._is_held.is_set() and not self._permits.acquire(timeout=HOLD_TIMEOUT_S):
            raise AssertionError(HELD_TOO_LONG)
        if self.call_s:
            time.sleep(self.call_s)
        # Fails if the embeddings differ in length, as a real model does.
        targets = torch.stack([row.prompt_embeds for row in rows.conditioning])[:, 0]
        return _with_faults(rows.latents - targets[:, :, None, None], call, self.faults)


def _with_faults(result: torch.Tensor, call: Call, faults: Sequence[Fault]) -> torch.Tensor:
    for when, what in list(faults):
        if when(call):
            result = what(result, call)
    return result


def colour_of(prompt: str, *, clip_skip: int = 0) -> np.ndarray:
    """Returns a prompt's target: red, green, blue, and a channel that decoding ignores."""
    digest = hashlib.sha256(f"{prompt}\0{clip_skip}".encode()).digest()
    values = 0.3 + 0.4 * np.frombuffer(digest[:LATENT_CHANNELS], dtype=np.uint8) / 255
    return values.astype(np.float32)


def expected_pixels(
    prompt: str,
    *,
    seed: int,
    negative_prompt: str = "",
    guidance_scale: float = 1.0,
    width: int = 64,
    height: int = 64,
) -> np.ndarray:
    """Returns the expected image of an ``euler`` or ``heun`` request, (h, w, 3) uint8.

    Exact up to rounding: the engine multiplies at each step, this function only once.
    """
    target = colour_of(prompt)
    if guidance_scale > 1.0:
        negative = colour_of(negative_prompt)
        target = negative + guidance_scale * (target - negative)
    shape = (1, LATENT_CHANNELS, height // SIZE_FACTOR, width // SIZE_FACTOR)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))[0].numpy()
    latents = target[:, None, None] + TRACE * (noise - target[:, None, None])
    image = latents[:3].clip(0, 1).repeat(SIZE_FACTOR, axis=1).repeat(SIZE_FACTOR, axis=2)
    return (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
