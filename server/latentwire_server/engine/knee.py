"""Where larger denoiser calls stop to pay, measured before a model is served.

The loading thread, before the engine has the model: nobody else may use the device.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import torch

from latentwire_server.engine.faults import FaultKind, fault_kind, free_memory, raise_if_broken
from latentwire_server.engine.row_budget import LEAST_ROWS, MOST_ROWS
from latentwire_server.models.model import DenoiserInput

if TYPE_CHECKING:
    from latentwire_server.models.model import DiffusionModel

_LEAST_GAIN: Final = 1.05
"""What twice the rows must bring in rows per second, for a call that others notice waiting for."""
_LEAST_KEPT: Final = 0.95
"""What twice the rows must keep of the best rate in a shorter call: what the engine does around
each call is not measured here, and fewer calls need less of it."""
_SHORT_CALL_S: Final = 0.25
_LONGEST_CALL_S: Final = 2.0
"""No larger calls are tried where a warm one takes this long."""
_LONGEST_FIRST_CALL_S: Final = 20.0
"""Nor where the first one, which warms up, takes this long."""
_NUM_CALLS: Final = 3

_LOGGER = logging.getLogger(__name__)


def compile_for(model: DiffusionModel, *, num_rows: int) -> None:
    """Lets the model compile for calls of so many rows; it does without where that fails.

    Raises:
        Exception: the device is broken.
    """
    try:
        model.prepare(num_rows)
    except Exception as error:  # Border: the loading thread
        raise_if_broken(error)
        _LOGGER.warning("denoiser does not compile rows=%d", num_rows, exc_info=True)


@torch.inference_mode()
def measure_knee(model: DiffusionModel) -> int:
    """Returns the rows from which on a call draws no more per second, at the model's own size.

    Calls are made as they will be later: compiled, where the model compiles.

    Raises:
        Exception: what the model raises; out of memory only if not even one image fits.
    """
    best, best_rate, num_rows = LEAST_ROWS, 0.0, LEAST_ROWS
    while num_rows <= MOST_ROWS:
        compile_for(model, num_rows=num_rows)
        seconds = _seconds_or_none(model, num_rows=num_rows)
        if seconds is None:
            free_memory()
            # Decoding wants room too.
            return max(LEAST_ROWS, best // 2)
        _LOGGER.debug("denoiser call rows=%d seconds=%.3f", num_rows, seconds)
        wanted = _LEAST_KEPT if seconds <= _SHORT_CALL_S else _LEAST_GAIN
        if num_rows / seconds < wanted * best_rate:
            break
        best, best_rate = num_rows, max(best_rate, num_rows / seconds)
        if seconds > _LONGEST_CALL_S:
            break
        num_rows *= 2
    return best


def _seconds_or_none(model: DiffusionModel, *, num_rows: int) -> float | None:
    """Returns how long a call takes, or None where it does not fit into memory."""
    try:
        return _seconds_of_call(model, num_rows=num_rows)
    except Exception as error:
        if num_rows == LEAST_ROWS or fault_kind(error) is not FaultKind.OUT_OF_MEMORY:
            raise
        # A kept traceback keeps the tensors of its frames.
        error.__traceback__ = None
        return None


def _seconds_of_call(model: DiffusionModel, *, num_rows: int) -> float:
    defaults = model.info.defaults
    shape = model.latent_shape(width=defaults.width, height=defaults.height)
    text = model.encode_prompt("", clip_skip=0)
    rows = DenoiserInput(
        latents=torch.randn((num_rows, *shape), generator=torch.Generator().manual_seed(0)),
        timesteps=torch.full((num_rows,), 500.0),
        conditioning=[text] * num_rows,
    )
    # The first call of a size warms it up.
    first_s = _timed(model, rows)
    if first_s > _LONGEST_FIRST_CALL_S:
        return first_s
    best_s = float("inf")
    for _ in range(_NUM_CALLS):
        best_s = min(best_s, _timed(model, rows))
        if best_s > _LONGEST_CALL_S:
            break
    return best_s


def _timed(model: DiffusionModel, rows: DenoiserInput) -> float:
    started = time.monotonic()
    # On the processor: only then is an asynchronous device done.
    model.denoise(rows).cpu()
    return time.monotonic() - started
