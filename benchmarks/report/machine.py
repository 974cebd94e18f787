"""The machine on which figures were measured."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from benchmarks.measurement.ceiling import Ceiling


def describe_machine(device: torch.device, dtype: torch.dtype, ceiling: Ceiling) -> dict[str, str]:
    """Returns the machine's hardware, number format and measured rates."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "cores": str(len(psutil.Process().cpu_affinity())),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "matmul": f"{ceiling.matmul_flops / 1e12:.2f} TFLOP/s",
        "convolution": f"{ceiling.convolution_flops / 1e12:.2f} TFLOP/s",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
