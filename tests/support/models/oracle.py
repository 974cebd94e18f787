"""The images of diffusers' own pipelines, and those of the engine, for the same arguments.

The scheduler table follows diffusers' documentation and not our own table, so that mistakes in ours
show. Everything is float32 on the CPU unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import PIL.Image
import torch

from latentwire_server.engine.request import HighResolutionFix, Source
from latentwire_server.engine.settings import Batching
from latentwire_server.models.info import LoraChoice, SchedulerChoice
from tests.support.engine.driving import Driver, pixels_of_file
from tests.support.engine.requests import request
from tests.support.models.tiny_models import INPAINTING_CHANNELS, build_parts, pipeline_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

SIDE = 64
TOLERANCE = 2
"""Of 255: rounding, and the effect in float32 of splitting a batch differently."""


@dataclass(frozen=True, kw_only=True)
class Pipelines:
    """Diffusers' pipelines of one family."""

    text: Any
    image: Any
    mask: Any
    options: Mapping[str, Any]
    """Disable everything except the generation of images."""


STABLE_DIFFUSION = Pipelines(
    text=diffusers.StableDiffusionPipeline,
    image=diffusers.StableDiffusionImg2ImgPipeline,
    mask=diffusers.StableDiffusionInpaintPipeline,
    options={"safety_checker": None, "requires_safety_checker": False},
)
STABLE_DIFFUSION_XL = Pipelines(
    text=diffusers.StableDiffusionXLPipeline,
    image=diffusers.StableDiffusionXLImg2ImgPipeline,
    mask=diffusers.StableDiffusionXLInpaintPipeline,
    options={"add_watermarker": False},
)

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-sde": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}

SIGMAS = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def build_sensitive_folder(folder: Path, **options: Any) -> Path:
    """Writes a tiny model whose images depend strongly on the prompt and on the timestep.

    With random weights they would hardly depend on either, and hide mistakes.
    """
    parts = build_parts(folder, **options)
    for name, parameter in parts["unet"].named_parameters():
        if "time_emb" in name or "attn2" in name:
            parameter.data *= 3
    pipeline_of(parts).save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Case:
    """The arguments of one generation."""

    name: str
    scheduler: str = "euler"
    sigmas: str = "default"
    prompt: str = "a red circle on a blue background"
    negative_prompt: str = ""
    num_inference_steps: int = 5
    guidance_scale: float = 5.0
    seed: int = 11
    num_images: int = 1
    width: int = SIDE
    height: int = SIDE
    clip_skip: int = 0
    image: np.ndarray | None = None
    """(height, width, 3) uint8 of the images' size."""
    mask: np.ndarray | None = None
    """(height, width) uint8, 255 where the image is regenerated."""
    strength: float = 0.8
    high_noise_frac: float | None = None
    high_resolution_fix: HighResolutionFix | None = None
    loras: tuple[tuple[str, float], ...] = ()
    """Ids with their scales."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments with the same name in our requests and in diffusers."""
        names = ["prompt", "num_inference_steps", "guidance_scale"]
        # SDXL's pipelines encode "", but use zeros without a negative prompt.
        if self.negative_prompt:
            names.append("negative_prompt")
        # The image-to-image pipelines take the size from the image.
        if self.image is None or self.mask is not None:
            names += ["width", "height"]
        return {name: getattr(self, name) for name in names}

    @property
    def as_inpainting(self) -> Case:
        """The same for a pipeline that can only inpaint: everything is regenerated."""
        size = self.height, self.width
        mask = np.full(size, 255, np.uint8) if self.mask is None else self.mask
        if self.image is not None:
            return replace(self, mask=mask)
        return replace(self, image=np.zeros((*size, 3), np.uint8), mask=mask, strength=1.0)

    @property
    def source_arguments(self) -> dict[str, Any]:
        """Diffusers' arguments for the image to start from."""
        if self.image is None:
            return {}
        arguments = {"image": PIL.Image.fromarray(self.image), "strength": self.strength}
        if self.mask is not None:
            arguments["mask_image"] = PIL.Image.fromarray(self.mask)
        return arguments


class Oracle:
    """Diffusers' pipeline for a folder; generates the images of each case once."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        pipelines: Pipelines = STABLE_DIFFUSION,
    ) -> None:
        self._kinds = pipelines
        self._pipeline = pipelines.text.from_pretrained(
            folder, local_files_only=True, dtype=dtype, **pipelines.options
        )
        self._pipeline.set_progress_bar_config(disable=True)
        # For clip_skip the pipeline expects the layers where transformers 4 had them.
        encoder = self._pipeline.text_encoder
        if not hasattr(encoder, "text_model"):
            object.__setattr__(encoder, "text_model", encoder)
        self._config = self._pipeline.scheduler.config
        self._generated: dict[str, list[np.ndarray]] = {}
        self._has_loras = False

    @property
    def pipeline(self) -> Any:
        """The pipeline itself."""
        return self._pipeline

    def load_loras(self, folder: Path) -> None:
        """Loads the LoRAs of a folder for the cases that name them."""
        # The loader would mistake the text_model set above for that of transformers 4.
        text_model = vars(self._pipeline.text_encoder).pop("text_model", None)
        for path in sorted(folder.glob("*.safetensors")):
            self._pipeline.load_lora_weights(folder, weight_name=path.name, adapter_name=path.stem)
        if text_model is not None:
            object.__setattr__(self._pipeline.text_encoder, "text_model", text_model)
        self._has_loras = True

    def _set_loras(self, case: Case) -> None:
        if not self._has_loras:
            return
        if not case.loras:
            self._pipeline.disable_lora()
            return
        self._pipeline.enable_lora()
        self._pipeline.set_adapters([id_ for id_, _ in case.loras], [one for _, one in case.loras])

    def compute_in_channels_last(self) -> None:
        """Switches to channels_last: the same values, ten times faster in bfloat16."""
        for part in (self._pipeline.unet, self._pipeline.vae):
            part.to(memory_format=torch.channels_last)
        self._generated.clear()

    def decode_in_tiles(self) -> None:
        """Switches to decoding in tiles, as the server decodes large images."""
        self._pipeline.vae.enable_tiling()
        self._generated.clear()

    def generate(self, case: Case) -> list[np.ndarray]:
        if case.name not in self._generated:
            self._generated[case.name] = self._generate(case)
        return self._generated[case.name]

    def _generate(self, case: Case) -> list[np.ndarray]:
        if self._pipeline.unet.config.in_channels == INPAINTING_CHANNELS:
            case = case.as_inpainting
        pipeline = self.pipeline_with_scheduler(case)
        generators = [
            torch.Generator("cpu").manual_seed(case.seed + index)
            for index in range(case.num_images)
        ]
        # For several images the inpainting pipeline encodes with the first one's seed alone.
        calls = [generators] if case.mask is None else [[one] for one in generators]
        images = [
            image
            for own in calls
            for image in pipeline(
                **case.arguments,
                **case.source_arguments,
                num_images_per_prompt=len(own),
                clip_skip=case.clip_skip or None,
                generator=own,
            ).images
        ]
        generated = [np.asarray(image).astype(np.int16) for image in images]
        if case.image is None or case.mask is None:
            return generated
        return [np.where(case.mask[..., None] == 255, one, case.image) for one in generated]

    def pipeline_with_scheduler(self, case: Case) -> Any:
        """Returns the pipeline of the case's kind, with its scheduler."""
        class_name, options = SCHEDULERS[case.scheduler]
        self._set_loras(case)
        pipeline = self._pipeline_for(case)
        # After the pipeline is made: its constructor changes the configuration of some.
        pipeline.scheduler = getattr(diffusers, class_name).from_config(
            self._config, **options, **SIGMAS[case.sigmas]
        )
        return pipeline

    def generate_encoded(
        self, case: Case, prompt_embeds: torch.Tensor, negative_prompt_embeds: torch.Tensor
    ) -> list[np.ndarray]:
        """Generates an image from encoded prompts, (1, tokens, features) each."""
        class_name, options = SCHEDULERS[case.scheduler]
        kind = getattr(diffusers, class_name)
        self._pipeline.scheduler = kind.from_config(self._config, **options)
        encoded = ("prompt", "negative_prompt")
        given = {name: value for name, value in case.arguments.items() if name not in encoded}
        images = self._pipeline(
            **given,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            generator=torch.Generator("cpu").manual_seed(case.seed),
        ).images
        return [np.asarray(image).astype(np.int16) for image in images]

    def _pipeline_for(self, case: Case) -> Any:
        if case.image is None:
            return self._pipeline
        kind = self._kinds.image if case.mask is None else self._kinds.mask
        options = {
            name: value
            for name, value in self._kinds.options.items()
            if name not in self._pipeline.components
        }
        pipeline = kind(**self._pipeline.components, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@dataclass(kw_only=True)
class EngineImages:
    """The engine's images of cases, alone or together; files without metadata."""

    model: DiffusionModel
    batching: Batching = Batching.DYNAMIC
    max_rows: int = 8
    lora_bytes: int = 2**30

    def alone(self, *cases: Case) -> dict[str, list[bytes]]:
        """Generates one after the other."""
        return asyncio.run(self._generate(list(cases), is_crowd=False, failing={}))

    def crowd(
        self, *cases: Case, failing: Mapping[str, type[Exception]] | None = None
    ) -> dict[str, list[bytes]]:
        """Generates all at once; those in ``failing`` must fail, with these errors."""
        return asyncio.run(self._generate(list(cases), is_crowd=True, failing=failing or {}))

    async def _generate(
        self, cases: list[Case], *, is_crowd: bool, failing: Mapping[str, type[Exception]]
    ) -> dict[str, list[bytes]]:
        driver = Driver(
            self.model,
            batching=self.batching,
            max_rows=self.max_rows,
            mask_feather=0,
            lora_bytes=self.lora_bytes,
        )
        await driver.engine.start()
        requests = [request_of(case, self.model) for case in cases]
        try:
            if is_crowd:
                results = await driver.run_all(*requests)
            else:
                results = [await driver.run(one) for one in requests]
        finally:
            await driver.engine.aclose()
        for case, result in zip(cases, results, strict=True):
            expected = failing.get(case.name, type(None))
            assert isinstance(result.error, expected), (case, result.error)
        return {
            case.name: [image.data for image in result.images]
            for case, result in zip(cases, results, strict=True)
        }


def largest_difference(files: list[bytes], expected: list[np.ndarray]) -> int:
    """Returns the largest difference of any channel of any pixel of any image."""
    generated = [pixels_of_file(data) for data in files]
    assert [one.shape for one in generated] == [one.shape for one in expected]
    return max(
        int(np.abs(one - other).max()) for one, other in zip(generated, expected, strict=True)
    )


def request_of(case: Case, model: DiffusionModel) -> Any:
    """Returns the request with a case's arguments."""
    source = None
    if case.image is not None:
        digest = hashlib.sha256(case.image.tobytes()).digest()
        mask_digest = b"" if case.mask is None else hashlib.sha256(case.mask.tobytes()).digest()
        source = Source(
            pixels=case.image,
            mask=case.mask,
            strength=case.strength,
            image_sha256=digest,
            mask_sha256=mask_digest,
        )
    return request(
        source=source,
        model=model.info.id,
        seed=case.seed,
        num_images=case.num_images,
        clip_skip=case.clip_skip,
        high_noise_frac=case.high_noise_frac,
        high_resolution_fix=case.high_resolution_fix,
        guidance_is_embedded=model.info.guidance_is_embedded,
        loras=tuple(LoraChoice(id=id_, scale=scale) for id_, scale in case.loras),
        scheduler=SchedulerChoice(id=case.scheduler, sigmas=case.sigmas),
        **case.arguments | {"width": case.width, "height": case.height},
    )
