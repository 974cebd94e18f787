"""The systems that are compared: the service, and pipelines that serve one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import diffusers
import psutil
import torch

import latentwire
from benchmarks.load import Outcome
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from PIL import Image

    from benchmarks.workload import Request

START_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """Denoiser calls, and their rows without padding."""

    num_calls: int
    num_rows: int
    max_rows: int
    """What one call may hold at the model's own size."""


class Service:
    """A server process of its own, called over gRPC."""

    name = "service"

    def __init__(self, model: str, *, max_rows: int | None) -> None:
        """Takes what to serve: ``embedded`` or a folder."""
        self._arguments = ["--model", model]
        if max_rows is not None:
            self._arguments += ["--max-rows", str(max_rows)]
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts the server and waits until it can draw."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        port_file = folder / "port"
        command = [sys.executable, "-m", "latentwire_server", *self._arguments]
        process = await asyncio.create_subprocess_exec(
            *command, "--port", "0", "--port-file", str(port_file), "--log-level", "warning"
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
        return self

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
            max_rows=info.max_rows,
        )

    async def wait_idle(self) -> None:
        """Returns once no generation is running."""
        is_busy = True
        while is_busy:
            await asyncio.sleep(0.01)
            is_busy = (await self.client.server_info()).running_count > 0

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
            kind.prompt,
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


class Pipeline:
    """diffusers' own pipeline behind a lock: first come, first served, one request at a time."""

    def __init__(self, name: str, folder: Path, *, is_optimised: bool) -> None:
        """Loads the model.

        Args:
            name: How the tables call it.
            folder: A diffusers folder.
            is_optimised: False loads it as its documentation's first example does, in float32. True
                takes the best lossless settings of the device: its fastest number format,
                channels_last, and a compiled UNet.
        """
        self.name = name
        device = choose_device("auto")
        dtype = choose_dtype("auto", device) if is_optimised else torch.float32
        self.is_float32 = dtype is torch.float32
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, dtype=dtype, safety_checker=None
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if is_optimised:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
            # Constants folded and weights packed for the CPU's kernels; 70 to 110 s a shape.
            options = {"freezing": device.type == "cpu"}
            pipeline.unet = torch.compile(pipeline.unet, dynamic=False, options=options)
        self._pipeline = pipeline
        self._own_scheduler = pipeline.scheduler.config
        self._thread = ThreadPoolExecutor(1)

    async def draw(self, request: Request) -> Outcome:
        """Draws one request when those before it are done. It cannot be left early."""
        _, outcome = await self.draw_image(request)
        return outcome

    async def draw_image(self, request: Request) -> tuple[Image.Image, Outcome]:
        """Draws one request and returns its image too."""
        sent = time.perf_counter()
        loop = asyncio.get_running_loop()
        started, image = await loop.run_in_executor(self._thread, self._run, request)
        now = time.perf_counter()
        deadline_s = request.kind.deadline_s
        is_late = deadline_s is not None and now - sent > deadline_s
        return image, Outcome(
            latency_s=now - sent,
            outcome="late" if is_late else "completed",
            queued_s=started - sent,
            has_deadline=deadline_s is not None,
        )

    def close(self) -> None:
        """Ends its thread."""
        self._thread.shutdown()

    @torch.inference_mode()
    def _run(self, request: Request) -> tuple[float, Image.Image]:
        started, kind = time.perf_counter(), request.kind
        self._pipeline.scheduler = _scheduler(kind.scheduler, self._own_scheduler)
        (image,) = self._pipeline(
            kind.prompt,
            width=kind.width,
            height=kind.height,
            num_inference_steps=kind.num_inference_steps,
            guidance_scale=kind.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        ).images
        image.save(io.BytesIO(), "PNG")
        return started, image


def _scheduler(id_: str, config: Mapping[str, object]) -> object:
    kind = SCHEDULERS[id_]
    return getattr(diffusers, kind.class_name).from_config(config, **kind.options)


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()
