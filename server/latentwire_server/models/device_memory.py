"""The default memory budget for the weights of all models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

from latentwire_server.models.precision import choose_device

WEIGHTS_SHARE: Final = 0.75
"""Of the device's memory. The rest is for activations and, on a CPU, for the process and the
system: Stable Diffusion 1.5's decoder needs 2.1 GB for one image of 512x512 in float32."""
_CONTAINER_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def default_budget_bytes(device: str) -> int:
    """Returns the budget for a device, named as in the settings.

    Raises:
        PrecisionError: this machine has no such device.
    """
    return int(WEIGHTS_SHARE * _memory_bytes(choose_device(device)))


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for path in _CONTAINER_LIMITS if (limit := _container_limit_bytes(path))]
    return min([installed, *limits])


def _container_limit_bytes(path: Path) -> int | None:
    """Returns the memory limit of the container; None if there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # No such file, or "max".
        return None
