"""A UNet with its compiled programs: which shape runs which one. Device thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.denoiser.backends import DenoiserBackend, compiler_of
from latentwire_server.models.denoiser.unet_call import Unet, UnetInput, eager

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import UNet2DConditionModel


_LOGGER = logging.getLogger(__name__)

_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a compiled UNet may be off: the norm of the difference over that of what is right. Of
the largest value single ones are 5 % off in bfloat16, without anything being wrong."""


_MOST_PADDING: Final = 1.25
"""A call is padded to a compiled size that is less than so many times its own. Measured: compiled
calls take 8 to 40 % less time than others."""


_NUM_TIMED: Final = 3


_TIMING_S: Final = 1.0


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
        self._compiler = compiler_of(unet, backend)
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
