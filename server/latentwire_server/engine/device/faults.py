"""Classifies the exceptions of device work.

Device thread and encoding pool. Exceptions of torch are recognized by class, and by text where
torch has no class. Nothing here keeps an exception: a traceback that is kept keeps the tensors of
its frames (measured: 512 MiB of a failed batch lived as long as its exception object).
"""

from __future__ import annotations

import gc
import logging
import uuid
from enum import Enum, auto
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.errors import (
    DeviceOutOfMemory,
    GenerationError,
    PipelineFailed,
)

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest

_LOGGER = logging.getLogger(__name__)


class FaultKind(Enum):
    """The cause of a failure."""

    OUT_OF_MEMORY = auto()
    """The call was too large for the device; a smaller one may fit."""
    DEVICE = auto()
    """The device is broken; none of its results can be trusted any more."""
    UNKNOWN = auto()
    """Anything else: a failure of one trajectory, or of the call as a whole."""


class DeviceBroken(Exception):
    """The device is broken; carries the error id that is in the log."""


def fault_kind(error: BaseException) -> FaultKind:
    """Returns the cause of ``error``."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return FaultKind.OUT_OF_MEMORY
    # The CPU allocator has no class of its own: it raises a plain RuntimeError.
    if isinstance(error, RuntimeError) and "can't allocate memory" in text:
        return FaultKind.OUT_OF_MEMORY
    if isinstance(error, torch.AcceleratorError):
        return FaultKind.DEVICE
    if isinstance(error, RuntimeError) and "CUDA error" in text:
        return FaultKind.DEVICE
    return FaultKind.UNKNOWN


def raise_if_broken(error: Exception) -> None:
    """Raises if ``error`` means that the device is broken, and logs the details.

    Raises:
        DeviceBroken: The device is broken.
    """
    if fault_kind(error) is FaultKind.DEVICE:
        error_id = uuid.uuid4().hex[:12]
        _LOGGER.error("device call failed error_id=%s", error_id, exc_info=error)
        raise DeviceBroken(error_id) from None


def free_memory() -> None:
    """Frees what a failed call has allocated. To be called outside its ``except`` block."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_generation_error(error: Exception, request: GenerationRequest) -> GenerationError:
    """Returns the error that ends ``request`` after ``error`` in its own work.

    Logs details that the caller does not get. To be called inside the ``except`` block.

    Raises:
        DeviceBroken: The device is broken, so that not only this request fails.
    """
    if isinstance(error, DeviceBroken):
        raise error
    if isinstance(error, GenerationError):
        return error
    kind = fault_kind(error)
    if kind is FaultKind.OUT_OF_MEMORY:
        return out_of_memory(request)
    error_id = uuid.uuid4().hex[:12]
    _LOGGER.error(
        "generation failed generation_id=%s error_id=%s",
        request.generation_id,
        error_id,
        exc_info=error,
    )
    if kind is FaultKind.DEVICE:
        raise DeviceBroken(error_id)
    return PipelineFailed(error_id=error_id)


def out_of_memory(request: GenerationRequest) -> DeviceOutOfMemory:
    """Returns the error of a request that does not fit the device even alone."""
    return DeviceOutOfMemory(
        width=request.width, height=request.height, num_images=request.num_images
    )
