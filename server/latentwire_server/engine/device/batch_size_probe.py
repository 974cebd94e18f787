"""Where larger denoiser calls stop to pay, measured before a model is served.

The loading thread, before the engine has the model. Each call is made where the caller says: beside
running generations on the device thread, one between two of their steps.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import torch

from latentwire_server.engine.device.faults import (
    FaultKind,
    fault_kind,
    free_memory,
    raise_if_broken,
)
from latentwire_server.engine.policy.row_budget import LEAST_ROWS, MOST_ROWS
from latentwire_server.models.protocol import DenoiserInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.models.protocol import DiffusionModel

ResultT = TypeVar("ResultT")

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
"""At least, and more while they take less than ``_MEASURED_S`` together."""
_MEASURED_S: Final = 0.3
_MOST_DIPS: Final = 1
"""So many sizes in a row may be no better before larger ones are given up, while calls are short:
one call size can be slow by itself (4 rows took 1.4 times as long a row as 2 and as 8, in every
backend), and a machine that was busy for a moment must not stay slow until the next start."""

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
        _LOGGER.warning(
            "denoiser does not compile model=%s rows=%d", model.info.id, num_rows, exc_info=True
        )


class Runner(Protocol):
    """Does work where and when it may be done, and returns once it is."""

    def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        """Returns the result of ``work``, or raises its error."""


def at_once(work: Callable[[], ResultT]) -> ResultT:
    """Does work on this thread: for a device that nobody else uses."""
    return work()


def probe_batch_size(model: DiffusionModel, *, run: Runner = at_once) -> int:
    """Returns the rows from which on a call draws no more per second, at the model's own size.

    Calls are made as they will be later: compiled, where the model compiles.

    Args:
        model: the model.
        run: makes one call, or compiles for one size, at a time.

    Raises:
        Exception: what the model raises; out of memory only if not even one image fits.
    """
    best, best_rate, num_rows, num_dips = LEAST_ROWS, 0.0, LEAST_ROWS, 0
    while num_rows <= MOST_ROWS:
        run(partial(compile_for, model, num_rows=num_rows))
        seconds = _seconds_or_none(model, num_rows=num_rows, run=run)
        if seconds is None:
            free_memory()
            # Decoding wants room too.
            return max(LEAST_ROWS, best // 2)
        _LOGGER.debug(
            "denoiser call model=%s rows=%d seconds=%.3f", model.info.id, num_rows, seconds
        )
        wanted = _LEAST_KEPT if seconds <= _SHORT_CALL_S else _LEAST_GAIN
        if num_rows / seconds >= wanted * best_rate:
            best, best_rate, num_dips = num_rows, max(best_rate, num_rows / seconds), 0
        elif seconds > _SHORT_CALL_S or num_dips == _MOST_DIPS:
            break
        else:
            num_dips += 1
        if seconds > _LONGEST_CALL_S:
            break
        num_rows *= 2
    return best


def _seconds_or_none(model: DiffusionModel, *, num_rows: int, run: Runner) -> float | None:
    """Returns how long a call takes, or None where it does not fit into memory."""
    try:
        return _seconds_of_call(model, num_rows=num_rows, run=run)
    except Exception as error:
        if num_rows == LEAST_ROWS or fault_kind(error) is not FaultKind.OUT_OF_MEMORY:
            raise
        # A kept traceback keeps the tensors of its frames.
        error.__traceback__ = None
        return None


def _seconds_of_call(model: DiffusionModel, *, num_rows: int, run: Runner) -> float:
    rows = run(partial(_example, model, num_rows=num_rows))
    # The first call of a size warms it up.
    first_s = run(partial(_timed, model, rows))
    if first_s > _LONGEST_FIRST_CALL_S:
        return first_s
    seconds: list[float] = []
    while len(seconds) < _NUM_CALLS or sum(seconds) < _MEASURED_S:
        seconds.append(run(partial(_timed, model, rows)))
        if seconds[-1] > _LONGEST_CALL_S:
            break
    return min(seconds)


@torch.inference_mode()
def _example(model: DiffusionModel, *, num_rows: int) -> DenoiserInput:
    defaults = model.info.defaults
    shape = model.latent_shape(width=defaults.width, height=defaults.height)
    text = model.encode_prompt("", clip_skip=0)
    return DenoiserInput(
        latents=torch.randn((num_rows, *shape), generator=torch.Generator().manual_seed(0)),
        timesteps=torch.full((num_rows,), 500.0),
        conditioning=[text] * num_rows,
    )


@torch.inference_mode()
def _timed(model: DiffusionModel, rows: DenoiserInput) -> float:
    started = time.monotonic()
    # On the processor: only then is an asynchronous device done.
    model.denoise(rows).cpu()
    return time.monotonic() - started
