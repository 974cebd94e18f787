"""How a UNet is run: as it is, or compiled before anything is served.

Compiling takes seconds to minutes a shape and slows down whatever runs beside it, so it happens in
``prepare`` alone: a shape that was not prepared runs as it is, or by a program for any shape where
the backend has one. What is compiled is used only if it agrees with the UNet as it is. Device
thread, or the loading thread before there is one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from latentwire_server.models.denoiser.inductor import (
    _INDUCTOR_PROGRAM_BYTES,
    Inductor,
    user_cache,
)
from latentwire_server.models.denoiser.openvino import OpenVinoCompiler, expected_openvino_bytes
from latentwire_server.models.errors import BackendError

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from latentwire_server.models.denoiser.unet_call import Compiler

_LOGGER = logging.getLogger(__name__)


_EXPECTED_INDUCTOR_SHAPES: Final = 5
"""Powers of two up to 16 rows: how many pay is not measured yet."""


class DenoiserBackend(StrEnum):
    """Ways to run the denoiser."""

    AUTO = "auto"
    """OpenVINO on a CPU where it is installed, for what it runs faster; else eager."""
    EAGER = "eager"
    INDUCTOR = "inductor"
    OPENVINO = "openvino"


def expected_programs_bytes(
    unet_bytes: int, *, backend: DenoiserBackend, device: torch.device
) -> int:
    """Returns what a UNet is expected to be compiled into, from what its weights take."""
    is_on_cpu = device.type == "cpu"
    match backend:
        case DenoiserBackend.EAGER:
            return 0
        case DenoiserBackend.INDUCTOR:
            each = _INDUCTOR_PROGRAM_BYTES + (unet_bytes if is_on_cpu else 0)
            return _EXPECTED_INDUCTOR_SHAPES * each
        case DenoiserBackend.AUTO | DenoiserBackend.OPENVINO:
            can_compile = is_on_cpu and importlib.util.find_spec("openvino") is not None
            return expected_openvino_bytes(unet_bytes) if can_compile else 0


def compiler_of(unet: UNet2DConditionModel, backend: DenoiserBackend) -> Compiler | None:
    """Returns what compiles the UNet for a backend; None for the eager one."""
    match backend:
        case DenoiserBackend.EAGER:
            return None
        case DenoiserBackend.AUTO:
            with contextlib.suppress(BackendError):
                return OpenVinoCompiler(unet, cache=user_cache() / "openvino")
            return None
        case DenoiserBackend.INDUCTOR:
            return Inductor(unet)
        case DenoiserBackend.OPENVINO:
            return OpenVinoCompiler(unet, cache=user_cache() / "openvino")
