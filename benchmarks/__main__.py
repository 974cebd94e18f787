"""`make bench`: measures the service against pipelines that serve one request at a time."""

from __future__ import annotations

import argparse
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

import torch
from diffusers.utils import logging as diffusers_logging
from rich.console import Console

from benchmarks.measurement.ceiling import Ceiling, measure_ceiling, operations_of
from benchmarks.measurement.experiment import Disagreement, run
from benchmarks.report.machine import describe_machine
from benchmarks.report.plots import write_plots
from benchmarks.report.report import caption, markdown, notes, sheets, write_json
from benchmarks.systems.architectures import model_folder
from benchmarks.systems.bare_engine import BareEngine
from benchmarks.systems.pipelines import Baseline, Pipeline
from benchmarks.systems.service import Service
from benchmarks.workload import Workload, read_workload
from latentwire_server.models.precision import choose_device, choose_dtype

if TYPE_CHECKING:
    from benchmarks.measurement.results import Result

FOLDER: Final = Path(__file__).parent / "workloads"


def main() -> int:
    """Measures the workloads, prints tables, and writes JSON and plots."""
    options = _options()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    console = Console(width=None if sys.stdout.isatty() else 200)
    # In a thread that ends, and torch's worker threads with it.
    with ThreadPoolExecutor(1) as measuring:
        ceiling = measuring.submit(measure_ceiling, device, dtype).result()
    machine = describe_machine(device, dtype, ceiling)
    baselines = options.baselines
    if baselines is None:
        baselines = [
            baseline
            for baseline in Baseline
            if baseline is not Baseline.OPENVINO or device.type == "cpu"
        ]
    results = []
    for name in options.workloads:
        path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
        workload = read_workload(path)
        try:
            result = asyncio.run(
                _measure(
                    workload,
                    baselines=baselines,
                    backend=options.backend,
                    num_rounds=options.rounds,
                    in_float32=dtype is torch.float32,
                )
            )
        except Disagreement as error:
            sys.stderr.write(f"{error}\n")
            return 1
        result.least_image_s = _least_image_s(workload, ceiling)
        results.append(result)
        console.print(caption({**machine, **result.service}))
        for sheet in sheets(result):
            console.print(sheet.for_terminal())
        for note in notes(result):
            console.print(note)
        if options.out is not None:
            write_json(options.out / "results.json", results, machine)
            (options.out / "tables.md").write_text(markdown(results, machine))
            write_plots(options.out, results)
    return 0


async def _measure(
    workload: Workload,
    *,
    baselines: list[Baseline],
    backend: str,
    num_rounds: int,
    in_float32: bool,
) -> Result:
    folder = model_folder(workload.model)
    async with AsyncExitStack() as stack:
        pipelines = []
        for baseline in baselines:
            pipelines.append(Pipeline(baseline, folder))
            stack.callback(pipelines[-1].close)
        service = await stack.enter_async_context(
            Service(str(folder), max_rows=workload.max_rows, backend=backend)
        )
        engine = None
        if workload.overhead:
            engine = await stack.enter_async_context(BareEngine(folder, service=service))
        return await run(
            workload,
            service,
            pipelines,
            num_rounds=num_rounds,
            in_float32=in_float32,
            engine=engine,
        )


def _least_image_s(workload: Workload, ceiling: Ceiling) -> float:
    folder = model_folder(workload.model)
    kinds = [kind for kind in workload.kinds if not kind.cancel_after_steps]
    return fmean(
        [ceiling.seconds_of(operations_of(folder, kind)) for kind in kinds],
        [kind.weight for kind in kinds],
    )


def _options() -> argparse.Namespace:
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "workloads",
        nargs="*",
        default=["embedded"],
        metavar="WORKLOAD",
        help=f"one of {', '.join(names)}, or a file of your own (default: embedded)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each load (default: 3)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        type=Baseline,
        choices=list(Baseline),
        help="default: all, OV on a CPU only",
    )
    parser.add_argument("--backend", default="auto", help="the service's denoiser backend")
    parser.add_argument("--out", type=Path, help="folder for results.json and the plots")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
