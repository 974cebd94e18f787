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
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.openvino_unet import OpenVinoCompiler, expected_openvino_bytes
from latentwire_server.models.unet import BackendError, Unet, UnetInput, eager

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import UNet2DConditionModel

    from latentwire_server.models.unet import Compiler

_LOGGER = logging.getLogger(__name__)

_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a compiled UNet may be off: the norm of the difference over that of what is right. Of
the largest value single ones are 5 % off in bfloat16, without anything being wrong."""

UNKNOWN_SHAPE = "eager_on_recompile"
"""What torch does where it finds nothing compiled: it never compiles beside a running step."""

_MOST_SHAPES: Final = 64
_MOST_PADDING: Final = 1.25
"""A call is padded to a compiled size that is less than so many times its own. Measured: compiled
calls take 8 to 40 % less time than others."""
_INDUCTOR_PROGRAM_BYTES: Final = 16 * 2**20
"""Of what is compiled for a shape, besides the weights that are frozen into it on a CPU. Measured:
7 MB for a UNet of 1282 operations."""
_EXPECTED_INDUCTOR_SHAPES: Final = 5
"""Powers of two up to 16 rows: how many pay is not measured yet."""
_NUM_TIMED: Final = 3
_TIMING_S: Final = 1.0


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


class PreparedUnet:
    """A UNet that is compiled for the shapes that were prepared."""

    def __init__(
        self, unet: UNet2DConditionModel, *, backend: DenoiserBackend = DenoiserBackend.EAGER
    ) -> None:
        """Takes the UNet, on its device.

        Raises:
            BackendError: the backend cannot be had here.
        """
        self._wanted = backend
        self._eager = eager(unet)
        self._compiler = _compiler(unet, backend)
        self._any_shape: Unet | None = None
        self._compiled: dict[torch.Size, Unet] = {}
        self._has_tried_any = False
        self._num_tokens: int | None = None
        """Of the prompts that were compiled for; longer ones run as they are."""

    @property
    def backend(self) -> DenoiserBackend:
        """What was asked for; for ``auto`` what is in use."""
        if self._wanted is not DenoiserBackend.AUTO:
            return self._wanted
        return DenoiserBackend.OPENVINO if self.shapes else DenoiserBackend.EAGER

    @property
    def shapes(self) -> tuple[str, ...]:
        """The input shapes that are compiled, such as ``"8x4x64x64"``; ``"any"`` for all."""
        shapes = ["x".join(map(str, shape)) for shape in list(self._compiled)]
        return tuple(shapes if self._any_shape is None else ["any", *shapes])

    @property
    def programs_bytes(self) -> int:
        """What is compiled takes, about."""
        if self._compiler is None:
            return 0
        return self._compiler.program_bytes * len(self.shapes)

    def prepare(self, rows: UnetInput) -> None:
        """Compiles for the shape of ``rows``, whose values must be like those of real calls.

        Where a shape takes minutes, sizes between powers of two are left to the next larger one.
        """
        if self._compiler is None or rows.latents.shape in self._compiled:
            return
        num_rows, *of_row = rows.latents.shape
        has_larger = any(others == of_row and size > num_rows for size, *others in self._compiled)
        if self._compiler.takes_minutes and has_larger and num_rows & (num_rows - 1):
            return
        self._num_tokens = rows.prompt_embeds.shape[1]
        if not self._has_tried_any:
            self._has_tried_any = True
            self._any_shape = self._checked(self._compiler.for_any_shape, rows, name="any")
        name = "x".join(map(str, rows.latents.shape))
        compiled = self._checked(self._compiler.for_shape, rows, name=name)
        if compiled is not None:
            self._compiled[rows.latents.shape] = compiled

    def __call__(self, rows: UnetInput) -> torch.Tensor:
        """Returns (rows, channels, height, width)."""
        if rows.prompt_embeds.shape[1] != self._num_tokens:
            return self._eager(rows)
        num_rows, *of_row = rows.latents.shape
        sizes = [
            size
            for size, *others in self._compiled
            if others == of_row and num_rows <= size < _MOST_PADDING * num_rows
        ]
        if not sizes:
            return (self._any_shape or self._eager)(rows)
        padded = rows.map(lambda tensor: _padded(tensor, num_rows=min(sizes)))
        return self._compiled[padded.latents.shape](padded)[:num_rows]

    def _checked(
        self, compiles: Callable[[UnetInput], Unet | None], rows: UnetInput, *, name: str
    ) -> Unet | None:
        """Compiles; returns what agrees with the UNet as it is and, for ``auto``, is faster."""
        started = time.monotonic()
        compiled = compiles(rows)
        if compiled is None:
            return None
        expected = self._eager(rows)
        difference = (compiled(rows) - expected).float().norm() / expected.float().norm()
        # Not `>`: NaN must not pass.
        if not bool(difference <= _TOLERANCES[rows.latents.dtype]):
            _LOGGER.warning("compiled denoiser is off by %.2g, unused shape=%s", difference, name)
            return None
        if self._wanted is DenoiserBackend.AUTO:
            compiled_s, eager_s = _seconds_of(compiled, rows), _seconds_of(self._eager, rows)
            if compiled_s > eager_s:
                _LOGGER.debug(
                    "compiled denoiser is slower, unused shape=%s compiled_s=%.3f eager_s=%.3f",
                    name,
                    compiled_s,
                    eager_s,
                )
                return None
        _LOGGER.debug("compiled denoiser shape=%s in_s=%.1f", name, time.monotonic() - started)
        return compiled


def user_cache() -> Path:
    """Returns the user's folder for what can be made again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentwire"


def _padded(tensor: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """Returns the tensor with copies of its first row up to so many."""
    num_missing = num_rows - len(tensor)
    if num_missing == 0:
        return tensor
    return torch.cat([tensor, tensor[:1].expand(num_missing, *tensor.shape[1:])])


def _seconds_of(unet: Unet, rows: UnetInput) -> float:
    """Returns how long the fastest of some calls takes, after one that warmed it up."""
    best_s, give_up_at = float("inf"), time.monotonic() + _TIMING_S
    for _ in range(_NUM_TIMED):
        started = time.monotonic()
        unet(rows)
        best_s = min(best_s, time.monotonic() - started)
        if time.monotonic() > give_up_at:
            break
    return best_s


def _compiler(unet: UNet2DConditionModel, backend: DenoiserBackend) -> Compiler | None:
    match backend:
        case DenoiserBackend.EAGER:
            return None
        case DenoiserBackend.AUTO:
            with contextlib.suppress(BackendError):
                return OpenVinoCompiler(unet, cache=user_cache() / "openvino")
            return None
        case DenoiserBackend.INDUCTOR:
            return _Inductor(unet)
        case DenoiserBackend.OPENVINO:
            return OpenVinoCompiler(unet, cache=user_cache() / "openvino")


class _Inductor:
    """Compiles by torch, for single shapes: 70 to 110 s each on two cores."""

    takes_minutes = True

    def __init__(self, unet: UNet2DConditionModel) -> None:
        # torch's own choice is a temporary folder, which a restart may find empty.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
        # Freezing folds constants and packs weights for the CPU's kernels; GPUs gain nothing by it.
        is_frozen = unet.device.type == "cpu"
        options = {"freezing": is_frozen}
        weights_bytes = sum(one.nbytes for one in unet.parameters()) if is_frozen else 0
        self.program_bytes = weights_bytes + _INDUCTOR_PROGRAM_BYTES
        self._compiled = eager(torch.compile(unet, dynamic=False, options=options))

    def for_any_shape(self, _rows: UnetInput) -> None:
        """Returns nothing: dynamic shapes gained nothing where they were measured."""

    def for_shape(self, rows: UnetInput) -> Unet:
        """Compiles for the shape of ``rows``."""
        # Here, since it takes its time to import.
        from torch._dynamo import config as dynamo_config  # noqa: PLC0415

        with dynamo_config.patch(recompile_limit=_MOST_SHAPES):
            self._compiled(rows)
        with torch.compiler.set_stance("fail_on_recompile"):
            self._compiled(rows)
        return self._call

    def _call(self, rows: UnetInput) -> torch.Tensor:
        with torch.compiler.set_stance(UNKNOWN_SHAPE):
            return self._compiled(rows)
