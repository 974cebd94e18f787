"""Chooses the device and the number format: the fastest that the hardware really supports."""

from __future__ import annotations

import re
from typing import Final

import torch

from latentwire_server.models.errors import PrecisionError

_DEVICE: Final = re.compile(r"cpu|cuda(:\d{1,2})?|mps")


def choose_device(wanted: str) -> torch.device:
    """Returns the device for ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.

    Raises:
        PrecisionError: this machine has no such device.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if _DEVICE.fullmatch(wanted) is None:
        message = f"device={wanted!r}: allowed: auto, cpu, cuda, cuda:N, mps"
        raise PrecisionError(message)
    device = torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            message = f"device={wanted!r}: this machine has {count} CUDA devices"
            raise PrecisionError(message)
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        message = "device='mps': this machine has no Metal device"
        raise PrecisionError(message)
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the number format for ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    ``"auto"`` is bfloat16 where the device has it in hardware (Ampere and newer, CPUs with AMX or
    AVX-512 BF16), float16 on older GPUs, otherwise float32.

    Raises:
        PrecisionError: float16 on a CPU, which is slower there than float32 (measured).
    """
    if wanted == "auto":
        return _fastest_dtype(device)
    if wanted == "float16" and device.type == "cpu":
        message = "dtype='float16': slower than float32 on a CPU; use float32 or bfloat16"
        raise PrecisionError(message)
    dtype = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }.get(wanted)
    if dtype is None:
        message = f"dtype={wanted!r}: allowed: auto, float32, bfloat16, float16"
        raise PrecisionError(message)
    return dtype


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor from the CPU to the device, without waiting for a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    # A copy is asynchronous only from pinned memory.
    return tensor.pin_memory().to(device, non_blocking=True)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns ``"float32"`` for ``torch.float32``, and so on."""
    return str(dtype).removeprefix("torch.")


def _fastest_dtype(device: torch.device) -> torch.dtype:
    match device.type:
        case "cuda":
            # Turing emulates bfloat16, slowly.
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bfloat16 else torch.float16
        case "cpu":
            capabilities = torch.cpu.get_capabilities()
            in_hardware = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
            return torch.bfloat16 if in_hardware else torch.float32
        case _:
            return torch.float32
