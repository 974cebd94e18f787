"""The ways to run a UNet, and the compiler behind each of them."""

from __future__ import annotations

import contextlib
import importlib.util
from enum import StrEnum
from typing import TYPE_CHECKING

from latentwire_server.models.denoiser.inductor import InductorCompiler, expected_inductor_bytes
from latentwire_server.models.denoiser.openvino import OpenVinoCompiler, expected_openvino_bytes
from latentwire_server.models.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import UNet2DConditionModel

    from latentwire_server.models.denoiser.unet_call import Compiler


class DenoiserBackend(StrEnum):
    """A way to run the denoiser."""

    AUTO = "auto"
    """OpenVINO on a CPU if it is installed, for shapes that it makes faster; otherwise eager."""
    EAGER = "eager"
    INDUCTOR = "inductor"
    OPENVINO = "openvino"


def expected_programs_bytes(
    unet_bytes: int, *, backend: DenoiserBackend, device: torch.device
) -> int:
    """Returns the expected size of a UNet's compiled programs, given the size of its weights."""
    match backend:
        case DenoiserBackend.EAGER:
            return 0
        case DenoiserBackend.INDUCTOR:
            return expected_inductor_bytes(unet_bytes, device=device)
        case DenoiserBackend.AUTO | DenoiserBackend.OPENVINO:
            is_installed = importlib.util.find_spec("openvino") is not None
            can_compile = device.type == "cpu" and is_installed
            return expected_openvino_bytes(unet_bytes) if can_compile else 0


def compiler_of(
    unet: UNet2DConditionModel, backend: DenoiserBackend, *, cache: Path | None
) -> Compiler | None:
    """Returns the compiler of a backend; None for the eager one.

    Raises:
        BackendError: the backend is not available here, or not for this UNet.
    """
    match backend:
        case DenoiserBackend.EAGER:
            return None
        case DenoiserBackend.AUTO:
            with contextlib.suppress(BackendError):
                return OpenVinoCompiler(unet, cache=cache)
            return None
        case DenoiserBackend.INDUCTOR:
            return InductorCompiler(unet)
        case DenoiserBackend.OPENVINO:
            return OpenVinoCompiler(unet, cache=cache)
