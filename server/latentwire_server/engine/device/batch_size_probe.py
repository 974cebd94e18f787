"""The batch-size probe: it measures from how many rows on larger denoiser calls stop to pay.

Loading thread, before the engine has the model. The model's calls themselves are made by ``run``:
on the device thread, each between two steps of the running generations.
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
"""The gain in rows per second that twice the rows must bring, where a call is long enough for
other generations to notice the wait."""
_LEAST_SHORT_GAIN: Final = 0.95
"""The same for short calls, which may even lose a little: the engine's own work around each call is
not measured here, and fewer calls need less of it."""
_SHORT_CALL_S: Final = 0.25
_LONGEST_CALL_S: Final = 2.0
"""No larger size is tried once a warm call takes this long."""
_LONGEST_FIRST_CALL_S: Final = 20.0
"""Nor once a first call, which warms up, takes this long."""
_NUM_CALLS: Final = 3
"""The least number of calls of one size; more while they take less than ``_MEASURED_S`` in all."""
_MEASURED_S: Final = 0.3
_MOST_DIPS: Final = 1
"""How many sizes in a row may bring no gain before larger ones are given up, while calls are short:
one size can be slow by itself (4 rows took 1.4 times as long a row as 2 and as 8, in every
backend), and a machine that was busy for a moment must not stay slow until the next start."""

_LOGGER = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs work where and when the device allows it, and waits for the result."""

    def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        """Returns the result of ``work``, or raises its error."""


def compile_for(model: DiffusionModel, *, num_rows: int) -> None:
    """Compiles the model's denoiser for calls of ``num_rows``; a failure leaves it uncompiled.

    Raises:
        DeviceBroken: The device is broken.
    """
    try:
        model.prepare(num_rows)
    except Exception as error:  # Border: the loading thread
        raise_if_broken(error)
        _LOGGER.warning(
            "denoiser does not compile model=%s rows=%d", model.info.id, num_rows, exc_info=True
        )


def probe_batch_size(model: DiffusionModel, *, run: Runner) -> int:
    """Returns the number of rows beyond which calls compute no more rows per second.

    Measured at the model's native size, with calls as they are made later: compiled, where the
    model compiles.

    Args:
        model: The model.
        run: Runs one call, or one compilation, at a time.

    Raises:
        Exception: Any error of the model; out of memory only if not even one image fits.
    """
    best, best_rate, num_rows, num_dips = LEAST_ROWS, 0.0, LEAST_ROWS, 0
    while num_rows <= MOST_ROWS:
        run(partial(compile_for, model, num_rows=num_rows))
        seconds = _seconds_or_none(model, num_rows=num_rows, run=run)
        if seconds is None:
            free_memory()
            # Half, because decoding needs memory too.
            return max(LEAST_ROWS, best // 2)
        _LOGGER.debug(
            "denoiser call model=%s rows=%d seconds=%.3f", model.info.id, num_rows, seconds
        )
        least_gain = _LEAST_SHORT_GAIN if seconds <= _SHORT_CALL_S else _LEAST_GAIN
        if num_rows / seconds >= least_gain * best_rate:
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
    """Returns how long a call takes, or None if it does not fit into memory."""
    try:
        return _seconds_of_call(model, num_rows=num_rows, run=run)
    except Exception as error:
        if num_rows == LEAST_ROWS or fault_kind(error) is not FaultKind.OUT_OF_MEMORY:
            raise
        # A traceback that is kept keeps the tensors of its frames.
        error.__traceback__ = None
        return None


def _seconds_of_call(model: DiffusionModel, *, num_rows: int, run: Runner) -> float:
    rows = run(partial(_example, model, num_rows=num_rows))
    # The first call of a size warms up.
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
    # The copy to the CPU waits until an asynchronous device is done.
    model.denoise(rows).cpu()
    return time.monotonic() - started
