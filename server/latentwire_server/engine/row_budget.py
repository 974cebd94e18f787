"""How many rows one denoiser call may hold: as told, or the knee that is measured at the start.

Beyond the knee a call takes longer and draws no more images per second: it only delays whoever
joins. It lies at some amount of work, so that smaller pictures may have more rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.engine.faults import FaultKind, fault_kind, free_memory
from latentwire_server.models.model import DenoiserInput

if TYPE_CHECKING:
    from latentwire_server.models.model import DiffusionModel

DEFAULT_ROWS: Final = 8
LEAST_ROWS: Final = 2
"""One image with guidance."""
MOST_ROWS: Final = 64

_LEAST_GAIN: Final = 1.05
"""What twice the rows must bring in rows per second."""
_LONGEST_CALL_S: Final = 2.0
"""No larger calls are tried where one takes this long."""
_NUM_CALLS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knee:
    num_rows: int
    area: int


class RowBudget:
    """The most rows of a call, by model and latent area. Any thread."""

    def __init__(self, told: int | None = None) -> None:
        """Takes what holds for every model and size; None: the knee of each model."""
        self._told = told
        self._knees: dict[str, _Knee] = {}

    def learn(self, model: str, *, num_rows: int, area: int) -> None:
        """Takes in a knee, measured with latents of ``area`` (height times width)."""
        self._knees[model] = _Knee(num_rows=num_rows, area=area)

    def of(self, model: str, *, area: int) -> int:
        """Returns the most rows of one call."""
        if self._told is not None:
            return self._told
        knee = self._knees.get(model)
        if knee is None:
            return DEFAULT_ROWS
        num_rows = min(max(knee.num_rows * knee.area // area, LEAST_ROWS), MOST_ROWS)
        # Padding goes up to powers of two: nothing in between is ever filled for free.
        return 1 << (num_rows.bit_length() - 1)


@torch.inference_mode()
def measure_knee(model: DiffusionModel) -> int:
    """Returns the rows from which on a call draws no more per second, at the model's own size.

    Before the engine has the model: nobody else may use the device. Takes a few calls.
    """
    best, best_rate, num_rows = LEAST_ROWS, 0.0, LEAST_ROWS
    while num_rows <= MOST_ROWS:
        try:
            seconds = _seconds_of_call(model, num_rows=num_rows)
        except Exception as error:
            if fault_kind(error) is not FaultKind.OUT_OF_MEMORY or num_rows == LEAST_ROWS:
                raise
            error.__traceback__ = None
            free_memory()
            # Decoding wants room too.
            return max(LEAST_ROWS, best // 2)
        if num_rows / seconds < _LEAST_GAIN * best_rate:
            break
        best, best_rate = num_rows, num_rows / seconds
        if seconds > _LONGEST_CALL_S:
            break
        num_rows *= 2
    return best


def _seconds_of_call(model: DiffusionModel, *, num_rows: int) -> float:
    defaults = model.info.defaults
    shape = model.latent_shape(width=defaults.width, height=defaults.height)
    text = model.encode_prompt("", clip_skip=0)
    rows = DenoiserInput(
        latents=torch.randn((num_rows, *shape), generator=torch.Generator().manual_seed(0)),
        timesteps=torch.full((num_rows,), 500.0),
        conditioning=[text] * num_rows,
    )
    best_s = float("inf")
    for _ in range(_NUM_CALLS):
        started = time.monotonic()
        # On the processor: only then is an asynchronous device done.
        model.denoise(rows).cpu()
        best_s = min(best_s, time.monotonic() - started)
        if best_s > _LONGEST_CALL_S:
            break
    return best_s
