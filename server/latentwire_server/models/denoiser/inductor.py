"""Compiles a UNet with torch's inductor. Device thread, or the loading thread before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.denoiser.unet_call import Unet, UnetInput, eager

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

UNKNOWN_SHAPE = "eager_on_recompile"
"""What torch does with a shape that is not compiled: it never compiles beside a running step."""
_MAX_SHAPES: Final = 64
_EXPECTED_SHAPES: Final = 5
"""Powers of two up to 16 rows: how many pay off is not measured yet."""
_PROGRAM_BYTES: Final = 16 * 2**20
"""Per shape, besides the weights that are frozen into the program on a CPU. Measured: 7 MB for a
UNet of 1282 operations."""


def expected_inductor_bytes(unet_bytes: int, *, device: torch.device) -> int:
    """Returns the expected size of all programs of a UNet with weights of ``unet_bytes``."""
    return _EXPECTED_SHAPES * _program_bytes(unet_bytes, device=device)


class InductorCompiler:
    """Compiles for single shapes: 70 to 110 s each on two cores."""

    takes_minutes = True

    def __init__(self, unet: UNet2DConditionModel) -> None:
        # Freezing folds constants and packs weights for the CPU's kernels; GPUs gain nothing by it.
        options = {"freezing": unet.device.type == "cpu"}
        weights_bytes = sum(one.nbytes for one in unet.parameters())
        self.program_bytes = _program_bytes(weights_bytes, device=unet.device)
        self._compiled = eager(torch.compile(unet, dynamic=False, options=options))

    def for_any_shape(self, _rows: UnetInput) -> None:
        """Returns nothing: dynamic shapes gained nothing when measured."""

    def for_shape(self, rows: UnetInput) -> Unet:
        """Compiles for the shape of ``rows``."""
        # Takes long to import.
        from torch._dynamo import config as dynamo_config  # noqa: PLC0415

        with dynamo_config.patch(recompile_limit=_MAX_SHAPES):
            self._compiled(rows)
        with torch.compiler.set_stance("fail_on_recompile"):
            self._compiled(rows)
        return self._call

    def _call(self, rows: UnetInput) -> torch.Tensor:
        with torch.compiler.set_stance(UNKNOWN_SHAPE):
            return self._compiled(rows)


def _program_bytes(unet_bytes: int, *, device: torch.device) -> int:
    return _PROGRAM_BYTES + (unet_bytes if device.type == "cpu" else 0)
