"""The baselines: diffusers pipelines that serve one request at a time."""

from __future__ import annotations

import asyncio
import functools
import io
import time
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from multiprocessing import get_context
from typing import TYPE_CHECKING

import diffusers
import PIL.Image
import torch
from diffusers.utils import logging as diffusers_logging

from benchmarks.load import Outcome
from latentwire_server.imaging.encode import PNG_COMPRESS_LEVEL
from latentwire_server.models.denoiser.openvino import OpenVinoCompiler
from latentwire_server.models.denoiser.unet_call import UnetInput
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.schedulers.sampler_table import SCHEDULERS
from latentwire_server.settings.files import user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL import Image

    from benchmarks.workload import Request
    from latentwire_server.models.denoiser.unet_call import Unet


class Baseline(StrEnum):
    """A way to set up diffusers' pipeline."""

    D32 = "D32"
    """As the first example of diffusers' documentation loads it, in float32."""
    DBEST = "Dbest"
    """With the best lossless settings for the device: its fastest number format, channels_last, a
    compiled UNet, and the service's PNG compression."""
    OPENVINO = "OV"
    """The same for a CPU, with the UNet compiled by OpenVINO."""


class Pipeline:
    """A diffusers pipeline that serves one request at a time, first come, first served.

    It runs in a process of its own: in a process with threads left by another model, the threads of
    a small model wait for each other three times as long.
    """

    def __init__(self, baseline: Baseline, folder: Path) -> None:
        """Starts no process yet: the diffusers folder is loaded for the first image."""
        self.name = baseline.value
        self.is_float32 = _dtype_of(baseline) is torch.float32
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._generate = functools.partial(_generate, baseline, folder)

    async def generate(self, request: Request) -> Outcome:
        """Generates one image after the requests before it; cannot be cancelled."""
        _, outcome = await self.generate_image(request)
        return outcome

    async def generate_image(self, request: Request) -> tuple[Image.Image, Outcome]:
        """Like `generate`, but also returns the image."""
        sent = time.perf_counter()
        loop = asyncio.get_running_loop()
        queued_s, file = await loop.run_in_executor(self._process, self._generate, request, sent)
        latency_s = time.perf_counter() - sent
        deadline_s = request.kind.deadline_s
        outcome = "completed"
        if deadline_s is not None and latency_s > deadline_s:
            outcome = "late"
        elif request.kind.cancel_after_steps:
            # The client has left, but the pipeline has finished the image all the same.
            outcome = "cancelled"
        return PIL.Image.open(io.BytesIO(file)), Outcome(
            latency_s=latency_s,
            outcome=outcome,
            queued_s=queued_s,
            has_deadline=deadline_s is not None,
        )

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


class _LoadedPipeline:
    """The pipeline in the process of a ``Pipeline``."""

    def __init__(self, baseline: Baseline, folder: Path) -> None:
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        is_optimised = baseline is not Baseline.D32
        self._png_options = {"compress_level": PNG_COMPRESS_LEVEL} if is_optimised else {}
        device = choose_device("auto")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, dtype=_dtype_of(baseline), safety_checker=None
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if is_optimised:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if baseline is Baseline.DBEST:
            # Freezing folds constants and packs weights for the CPU's kernels: 70 to 110 s a shape.
            options = {"freezing": device.type == "cpu"}
            pipeline.unet = torch.compile(pipeline.unet, dynamic=False, options=options)
        elif baseline is Baseline.OPENVINO:
            pipeline.unet = _OpenVinoUnet(pipeline.unet)
        self._pipeline = pipeline
        self._own_scheduler = pipeline.scheduler.config

    @torch.inference_mode()
    def generate(self, request: Request) -> bytes:
        """Returns the image as a PNG file."""
        kind = request.kind
        self._pipeline.scheduler = _scheduler(kind.scheduler, self._own_scheduler)
        (image,) = self._pipeline(
            request.prompt,
            width=kind.width,
            height=kind.height,
            num_inference_steps=kind.num_inference_steps,
            guidance_scale=kind.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        ).images
        file = io.BytesIO()
        image.save(file, "PNG", **self._png_options)
        return file.getvalue()


@functools.cache
def _loaded(baseline: Baseline, folder: Path) -> _LoadedPipeline:
    """Returns the one pipeline of this process."""
    return _LoadedPipeline(baseline, folder)


def _generate(
    baseline: Baseline, folder: Path, request: Request, sent: float
) -> tuple[float, bytes]:
    """Returns the seconds in the queue, and the PNG file."""
    # perf_counter is the same clock in every process of the machine.
    queued_s = time.perf_counter() - sent
    return queued_s, _loaded(baseline, folder).generate(request)


def _dtype_of(baseline: Baseline) -> torch.dtype:
    if baseline is Baseline.D32:
        return torch.float32
    return choose_dtype("auto", choose_device("auto"))


class _OpenVinoUnet(torch.nn.Module):
    """Stands in for the pipeline's UNet; compiles each shape when it first occurs."""

    def __init__(self, unet: diffusers.UNet2DConditionModel) -> None:
        super().__init__()
        self.config, self.device, self.dtype = unet.config, unet.device, unet.dtype
        self._compiler = OpenVinoCompiler(unet, cache=user_cache() / "openvino")
        self._compiled: dict[torch.Size, Unet] = {}

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_options: object,
    ) -> tuple[torch.Tensor]:
        timesteps = timestep.float().expand(len(latents))
        rows = UnetInput(latents, timesteps, encoder_hidden_states)
        if latents.shape not in self._compiled:
            self._compiled[latents.shape] = self._compiler.for_one_shape(rows)
        return (self._compiled[latents.shape](rows),)


def _scheduler(id_: str, config: Mapping[str, object]) -> object:
    entry = SCHEDULERS[id_]
    return getattr(diffusers, entry.class_name).from_config(config, **entry.options)
