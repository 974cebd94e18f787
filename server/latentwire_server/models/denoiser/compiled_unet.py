"""A UNet with compiled programs for some shapes.

Compiling takes seconds to minutes per shape and slows down everything that runs beside it, so it
happens in ``prepare`` alone. A shape that was not prepared runs eagerly, or in the program for any
shape if the backend has one. A program is only used if its result agrees with the eager UNet's.
Device thread, or the loading thread before it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.denoiser.backends import DenoiserBackend, compiler_of
from latentwire_server.models.denoiser.unet_call import Unet, UnetInput, eager

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import UNet2DConditionModel

_LOGGER = logging.getLogger(__name__)

_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest error of a compiled UNet: the norm of the difference over that of the eager result.
In bfloat16 single values differ by 5 % of the largest value without anything being wrong."""
_MAX_PADDING: Final = 1.25
"""A call is padded to a compiled size that is less than this many times its own. Measured: compiled
calls take 8 to 40 % less time than others."""
_NUM_TIMED: Final = 3
_TIMING_S: Final = 1.0


class CompiledUnet:
    """A UNet that is compiled for the shapes passed to ``prepare``."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        backend: DenoiserBackend = DenoiserBackend.EAGER,
        cache: Path | None = None,
    ) -> None:
        """Wraps a UNet that is on its device already.

        Args:
            unet: diffusers' UNet.
            backend: How to run it.
            cache: Where converted UNets are kept for the next start; None: nowhere.

        Raises:
            BackendError: the backend is not available here, or not for this UNet.
        """
        self._wanted = backend
        self._eager = eager(unet)
        self._compiler = compiler_of(unet, backend, cache=cache)
        self._any_shape: Unet | None = None
        self._compiled: dict[torch.Size, Unet] = {}
        self._has_tried_any = False
        self._num_tokens: int | None = None
        """The length of the prompts in ``prepare``; longer ones run eagerly."""

    @property
    def backend(self) -> DenoiserBackend:
        """The backend that was asked for; for ``auto`` the one in use."""
        if self._wanted is not DenoiserBackend.AUTO:
            return self._wanted
        return DenoiserBackend.OPENVINO if self.shapes else DenoiserBackend.EAGER

    @property
    def shapes(self) -> tuple[str, ...]:
        """The compiled input shapes, such as ``"8x4x64x64"``; ``"any"`` for all."""
        shapes = ["x".join(map(str, shape)) for shape in list(self._compiled)]
        return tuple(shapes if self._any_shape is None else ["any", *shapes])

    @property
    def programs_bytes(self) -> int:
        """The approximate size of all programs."""
        if self._compiler is None:
            return 0
        return self._compiler.program_bytes * len(self.shapes)

    def prepare(self, rows: UnetInput) -> None:
        """Compiles for the shape of ``rows``, whose values must be like those of real calls.

        Where a shape takes minutes, numbers of rows between powers of two use the program for the
        next larger one.
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
            if others == of_row and num_rows <= size < _MAX_PADDING * num_rows
        ]
        if not sizes:
            return (self._any_shape or self._eager)(rows)
        padded = rows.map(lambda tensor: _padded(tensor, num_rows=min(sizes)))
        return self._compiled[padded.latents.shape](padded)[:num_rows]

    def _checked(
        self, compile_for: Callable[[UnetInput], Unet | None], rows: UnetInput, *, name: str
    ) -> Unet | None:
        """Compiles; returns the program if it is accurate and, for ``auto``, faster than eager."""
        started = time.monotonic()
        compiled = compile_for(rows)
        if compiled is None:
            return None
        expected = self._eager(rows)
        difference = (compiled(rows) - expected).float().norm() / expected.float().norm()
        # Not `>`: NaN must not pass.
        if not bool(difference <= _TOLERANCES[rows.latents.dtype]):
            _LOGGER.warning(
                "compiled denoiser not used: inaccurate shape=%s error=%.2g", name, difference
            )
            return None
        if self._wanted is DenoiserBackend.AUTO:
            compiled_s, eager_s = _seconds_of(compiled, rows), _seconds_of(self._eager, rows)
            if compiled_s > eager_s:
                _LOGGER.debug(
                    "compiled denoiser not used: slower shape=%s compiled_s=%.3f eager_s=%.3f",
                    name,
                    compiled_s,
                    eager_s,
                )
                return None
        _LOGGER.debug("denoiser compiled shape=%s in_s=%.1f", name, time.monotonic() - started)
        return compiled


def _padded(tensor: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """Returns the tensor with copies of its first row up to ``num_rows``."""
    num_missing = num_rows - len(tensor)
    if num_missing == 0:
        return tensor
    return torch.cat([tensor, tensor[:1].expand(num_missing, *tensor.shape[1:])])


def _seconds_of(unet: Unet, rows: UnetInput) -> float:
    """Returns the time of the fastest of some calls; the first one has been made already."""
    best_s, give_up_at = float("inf"), time.monotonic() + _TIMING_S
    for _ in range(_NUM_TIMED):
        started = time.monotonic()
        unet(rows)
        best_s = min(best_s, time.monotonic() - started)
        if time.monotonic() > give_up_at:
            break
    return best_s
