"""torch.compile for the UNet, by inductor. Device thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.models.denoiser.unet_call import Unet, UnetInput, eager

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


UNKNOWN_SHAPE = "eager_on_recompile"
"""What torch does where it finds nothing compiled: it never compiles beside a running step."""


_MOST_SHAPES: Final = 64


_INDUCTOR_PROGRAM_BYTES: Final = 16 * 2**20
"""Of what is compiled for a shape, besides the weights that are frozen into it on a CPU. Measured:
7 MB for a UNet of 1282 operations."""


def user_cache() -> Path:
    """Returns the user's folder for what can be made again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentwire"


class Inductor:
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
