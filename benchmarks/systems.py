"""The systems that are compared: the service, and pipelines that serve one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import diffusers
import PIL.Image
import psutil
import torch
from diffusers.utils import logging as diffusers_logging

import latentwire
from benchmarks.load import Outcome
from latentwire_server.imaging.encode import PNG_COMPRESS_LEVEL
from latentwire_server.models.backends import DenoiserBackend, PreparedUnet, UnetInput
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from PIL import Image

    from benchmarks.workload import Request

START_TIMEOUT_S: Final = 1800.0
"""Compiling takes minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """Denoiser calls, and their rows without padding."""

    num_calls: int
    num_rows: int
    num_places: int
    """Rows that those calls could have had."""


class Service:
    """A server process of its own, called over gRPC."""

    name = "service"

    def __init__(self, model: str, *, max_rows: int | None, backend: str) -> None:
        """Takes what to serve: ``embedded`` or a folder."""
        self._arguments = ["--model", model, "--denoiser-backend", backend]
        if max_rows is not None:
            self._arguments += ["--max-rows", str(max_rows)]
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts the server and waits until it can draw."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        port_file = folder / "port"
        command = [sys.executable, "-m", "latentwire_server", *self._arguments]
        # Settings of this machine's own server must not get into the figures.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LATENTWIRE_")
        }
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--port", "0", "--port-file", str(port_file), "--log-level", "warning"),
            cwd=folder,
            env=environment,
        )
        self._stack.push_async_callback(_stop, process)
        self._process = psutil.Process(process.pid)
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not port_file.exists():
            if process.returncode is not None or time.monotonic() > give_up_at:
                sys.exit("the server does not start")
            await asyncio.sleep(0.1)
        client = latentwire.AsyncClient(f"127.0.0.1:{port_file.read_text().strip()}")
        self.client = await self._stack.enter_async_context(client)
        await client.wait_ready(START_TIMEOUT_S)
        self.info = await client.server_info()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server."""
        await self._stack.aclose()

    async def work_done(self) -> WorkDone:
        """Returns what the server's denoiser has done since it started."""
        info = await self.client.server_info()
        return WorkDone(
            num_calls=info.denoiser_call_count,
            num_rows=info.denoiser_row_count,
            num_places=info.denoiser_place_count,
        )

    async def wait_idle(self) -> None:
        """Returns once no generation is running."""
        is_busy = True
        while is_busy:
            await asyncio.sleep(0.01)
            is_busy = (await self.client.server_info()).running_count > 0

    @property
    def description(self) -> dict[str, str]:
        """How the server runs, by its own word."""
        info = self.info
        return {
            "device": info.device,
            "dtype": info.dtype,
            "backend": info.denoiser_backend,
            "compiled shapes": ", ".join(info.compiled_shapes),
            "max_rows": str(info.max_rows),
        }

    def resident_bytes(self) -> int:
        """Returns the memory that the server holds now."""
        return int(self._process.memory_info().rss)

    async def draw(self, request: Request) -> Outcome:
        """Draws one request, and leaves early where its kind says so."""
        _, outcome = await self.draw_image(request)
        return outcome

    async def draw_image(self, request: Request) -> tuple[Image.Image | None, Outcome]:
        """Draws one request and returns its image too."""
        kind, started = request.kind, time.perf_counter()
        first_progress_s = first_preview_s = queued_s = None
        image, outcome, steps_seen = None, "cancelled", 0
        stream = self.client.stream(
            request.prompt,
            width=kind.width,
            height=kind.height,
            num_inference_steps=kind.num_inference_steps,
            scheduler=kind.scheduler,
            guidance_scale=kind.guidance_scale,
            seed=request.seed,
            preview_interval_steps=kind.preview_interval_steps or None,
            timeout_s=kind.deadline_s,
        )
        try:
            async with stream as events:
                async for event in events:
                    now_s = time.perf_counter() - started
                    match event:
                        case latentwire.Progress():
                            first_progress_s = first_progress_s or now_s
                            steps_seen = event.step
                            if kind.cancel_after_steps and event.step >= kind.cancel_after_steps:
                                break
                        case latentwire.Preview():
                            first_preview_s = first_preview_s or now_s
                        case latentwire.Image():
                            image = event
                        case latentwire.Completed():
                            queued_s, outcome = event.timings.queued_s, "completed"
        except (latentwire.DeadlineError, latentwire.QueueFullError) as error:
            outcome = "late" if isinstance(error, latentwire.DeadlineError) else "refused"
        latency_s = time.perf_counter() - started
        return image.pil() if image else None, Outcome(
            latency_s=latency_s,
            outcome=outcome,
            queued_s=queued_s,
            first_progress_s=first_progress_s,
            first_preview_s=first_preview_s,
            steps_seen=steps_seen,
            has_deadline=kind.deadline_s is not None,
        )


class Baseline(StrEnum):
    """What the service is compared with."""

    D32 = "D32"
    """As the documentation's first example loads it, in float32."""
    DBEST = "Dbest"
    """At the best lossless settings of the device: its fastest number format, channels_last, a
    compiled UNet, and the service's PNG compression."""
    OPENVINO = "OV"
    """The same, the UNet compiled by OpenVINO for a CPU."""


class Pipeline:
    """diffusers' own pipeline behind a lock: first come, first served, one request at a time.

    It has a process of its own. Beside the threads that another model leaves in a process, those of
    a small one wait for each other three times as long.
    """

    def __init__(self, baseline: Baseline, folder: Path) -> None:
        """Takes the diffusers folder of the model; it is loaded for the first picture."""
        self.name = baseline.value
        self.is_float32 = _dtype_of(baseline) is torch.float32
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._draw = functools.partial(_draw, baseline, folder)

    async def draw(self, request: Request) -> Outcome:
        """Draws one request when those before it are done. It cannot be left early."""
        _, outcome = await self.draw_image(request)
        return outcome

    async def draw_image(self, request: Request) -> tuple[Image.Image, Outcome]:
        """Draws one request and returns its image too."""
        sent = time.perf_counter()
        loop = asyncio.get_running_loop()
        queued_s, file = await loop.run_in_executor(self._process, self._draw, request, sent)
        latency_s = time.perf_counter() - sent
        deadline_s = request.kind.deadline_s
        outcome = "completed"
        if deadline_s is not None and latency_s > deadline_s:
            outcome = "late"
        elif request.kind.cancel_after_steps:
            # Nobody waits for it any more, and it was drawn all the same.
            outcome = "cancelled"
        return PIL.Image.open(io.BytesIO(file)), Outcome(
            latency_s=latency_s,
            outcome=outcome,
            queued_s=queued_s,
            has_deadline=deadline_s is not None,
        )

    def close(self) -> None:
        """Ends its process."""
        self._process.shutdown()


class _LoadedPipeline:
    """What the process of a ``Pipeline`` holds."""

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
            # Constants folded and weights packed for the CPU's kernels; 70 to 110 s a shape.
            options = {"freezing": device.type == "cpu"}
            pipeline.unet = torch.compile(pipeline.unet, dynamic=False, options=options)
        elif baseline is Baseline.OPENVINO:
            pipeline.unet = _OpenVinoUnet(pipeline.unet)
        self._pipeline = pipeline
        self._own_scheduler = pipeline.scheduler.config

    @torch.inference_mode()
    def draw(self, request: Request) -> bytes:
        """Returns the PNG file."""
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
    """Returns that of this process."""
    return _LoadedPipeline(baseline, folder)


def _draw(baseline: Baseline, folder: Path, request: Request, sent: float) -> tuple[float, bytes]:
    """Returns the seconds since ``sent`` and the file."""
    # perf_counter is the same clock in every process of the machine.
    queued_s = time.perf_counter() - sent
    return queued_s, _loaded(baseline, folder).draw(request)


def _dtype_of(baseline: Baseline) -> torch.dtype:
    if baseline is Baseline.D32:
        return torch.float32
    return choose_dtype("auto", choose_device("auto"))


class _OpenVinoUnet(torch.nn.Module):
    """A UNet that is compiled for each shape when it is first seen, as the pipeline calls it."""

    def __init__(self, unet: diffusers.UNet2DConditionModel) -> None:
        super().__init__()
        self.config = unet.config
        self._prepared = PreparedUnet(unet, backend=DenoiserBackend.OPENVINO)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_options: object,
    ) -> tuple[torch.Tensor]:
        timesteps = timestep.float().expand(len(latents))
        rows = UnetInput(latents, timesteps, encoder_hidden_states)
        self._prepared.prepare(rows)
        if not self._prepared.shapes:
            message = "OpenVINO's UNet is off: it cannot be a baseline"
            raise RuntimeError(message)
        return (self._prepared(rows),)


def _scheduler(id_: str, config: Mapping[str, object]) -> object:
    kind = SCHEDULERS[id_]
    return getattr(diffusers, kind.class_name).from_config(config, **kind.options)


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()
