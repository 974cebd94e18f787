"""The service under test, in a server process of its own, called over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

import latentwire
from benchmarks.load import SERVICE, Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from PIL import Image

    from benchmarks.workload import Request

START_TIMEOUT_S: Final = 1800.0
"""Compiling the denoiser can take minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """Counts of denoiser calls and of their rows without padding."""

    num_calls: int
    num_rows: int
    num_places: int
    """The rows that those calls had room for."""


class Service:
    """A server process and a client connected to it."""

    name = SERVICE

    def __init__(self, model: str, *, max_rows: int | None, backend: str) -> None:
        """Prepares the server's command line; `model` is ``embedded`` or a folder."""
        self._arguments = ["--model", model, "--denoiser-backend", backend]
        if max_rows is not None:
            self._arguments += ["--max-rows", str(max_rows)]
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts the server and waits until it is ready."""
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
        # Settings for this machine's own server must not affect the measurement.
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
        """Returns the denoiser's counters since the server started."""
        info = await self.client.server_info()
        return WorkDone(
            num_calls=info.denoiser_call_count,
            num_rows=info.denoiser_row_count,
            num_places=info.denoiser_place_count,
        )

    async def wait_idle(self) -> None:
        """Waits until no generation is running."""
        is_busy = True
        while is_busy:
            await asyncio.sleep(0.01)
            is_busy = (await self.client.server_info()).running_count > 0

    @property
    def description(self) -> dict[str, str]:
        """The server's device, number format and backend, as it reports them."""
        info = self.info
        return {
            "device": info.device,
            "dtype": info.dtype,
            "backend": info.denoiser_backend,
            "compiled shapes": ", ".join(info.compiled_shapes),
            "max_rows": str(info.max_rows),
        }

    def resident_bytes(self) -> int:
        """Returns the server's resident memory."""
        return int(self._process.memory_info().rss)

    async def generate(self, request: Request) -> Outcome:
        """Generates one image; leaves early if the request's kind asks for it."""
        _, outcome = await self.generate_image(request)
        return outcome

    async def generate_image(self, request: Request) -> tuple[Image.Image | None, Outcome]:
        """Like `generate`, but also returns the image, None if there is none."""
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


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()
