"""Throughput of the service against a pipeline that serves one request at a time: `make bench`.

Both draw the same requests with the embedded model on the same device in the same number format,
in turns, and end at the PNG file. The service runs as a process of its own and is called over gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.table import Table

import latentwire
from latentwire_server.models.source import EMBEDDED_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT: Final = "a red circle on a blue background"
START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for in each round; request i has seed i."""

    num_requests: int
    side: int
    steps: int
    guidance_scale: float = 4.0


def main() -> None:
    """Measures, and prints a table."""
    arguments = _parser().parse_args()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    load = Load(num_requests=arguments.requests, side=arguments.side, steps=arguments.steps)
    with _service() as address:
        info, took_service, took_pipeline = _measure(address, load, rounds=arguments.rounds)
    table = Table(
        caption=f"median of {arguments.rounds} rounds, taken in turns",
        title=f"{load.num_requests} requests of {load.side}x{load.side} in {load.steps} steps on"
        f" {info.device} in {info.dtype}, {torch.get_num_threads()} threads",
    )
    for column in ("", "seconds", "images per second", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    baseline = statistics.median(took_pipeline)
    rows = (("pipeline, one at a time", took_pipeline), ("service, all at once", took_service))
    for name, took in rows:
        median = statistics.median(took)
        speed = load.num_requests / median
        table.add_row(name, f"{median:.2f}", f"{speed:.2f}", f"{baseline / median:.2f}")
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--requests", type=int, default=8, help="at once (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    return parser


def _measure(
    address: str, load: Load, *, rounds: int
) -> tuple[latentwire.ServerInfo, list[float], list[float]]:
    """Returns the server's description and the seconds of each round, service's and pipeline's."""
    with latentwire.Client(address) as client:
        info = client.server_info()
    pipeline = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_FOLDER, dtype=getattr(torch, info.dtype), safety_checker=None
    ).to(info.device)
    pipeline.set_progress_bar_config(disable=True)
    took_service, took_pipeline = [], []
    for number in range(rounds + 1):  # the first of each warms up
        started_at = time.perf_counter()
        asyncio.run(_draw_by_service(address, load))
        turned_at = time.perf_counter()
        _draw_by_pipeline(pipeline, load)
        if number:
            took_service.append(turned_at - started_at)
            took_pipeline.append(time.perf_counter() - turned_at)
    return info, took_service, took_pipeline


async def _draw_by_service(address: str, load: Load) -> None:
    async with latentwire.AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for seed in range(load.num_requests):
            tasks.create_task(
                client.generate(
                    PROMPT,
                    seed=seed,
                    width=load.side,
                    height=load.side,
                    num_inference_steps=load.steps,
                    guidance_scale=load.guidance_scale,
                )
            )


def _draw_by_pipeline(pipeline: StableDiffusionPipeline, load: Load) -> None:
    for seed in range(load.num_requests):
        (image,) = pipeline(
            PROMPT,
            width=load.side,
            height=load.side,
            num_inference_steps=load.steps,
            guidance_scale=load.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images
        image.save(io.BytesIO(), "PNG")


@contextlib.contextmanager
def _service() -> Iterator[str]:
    """Runs a server on the embedded model; gives its address once it can draw."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "latentwire_server", "--port", "0", "--max-rows", "16"]
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--port-file", str(port_file), "--log-level", "warning"]
        )
        try:
            give_up_at = time.monotonic() + START_TIMEOUT_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > give_up_at:
                    sys.exit("the server does not start")
                time.sleep(0.1)
            address = f"127.0.0.1:{port_file.read_text()}"
            with latentwire.Client(address) as client:
                client.wait_ready(START_TIMEOUT_S)
            yield address
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
