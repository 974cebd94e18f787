"""What kind of failure an exception of the device loop is.

Device thread and encoding pool. Exceptions of torch are told apart by class, and by text where
torch has no class. Nothing here keeps an exception: a kept traceback keeps the tensors of its
frames (measured: 512 MiB of a failed batch lived as long as its exception object).
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
    """Whom a failure belongs to."""

    OUT_OF_MEMORY = auto()
    """The call was too large for the device; a smaller one may fit."""
    DEVICE = auto()
    """The device is broken; nothing that it says can be trusted any more."""
    UNKNOWN = auto()
    """Anything else: of one trajectory, or of the call as a whole."""


class DeviceBroken(Exception):
    """The device is broken; carries the error id that is in the log."""


def fault_kind(error: BaseException) -> FaultKind:
    """Returns what kind of failure ``error`` is."""
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
    """Returns unless ``error`` says that the device is broken.

    Raises:
        DeviceBroken: it does; what is not said is in the log.
    """
    if fault_kind(error) is FaultKind.DEVICE:
        error_id = uuid.uuid4().hex[:12]
        _LOGGER.error("device call failed error_id=%s", error_id, exc_info=error)
        raise DeviceBroken(error_id) from None


def free_memory() -> None:
    """Gives back what a failed call held. To be called outside its ``except`` block."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def own_failure(error: Exception, request: GenerationRequest) -> GenerationError:
    """Returns how ``request`` ends after ``error`` in work of its own; logs what is not said.

    To be called inside the ``except`` block.

    Raises:
        DeviceBroken: it is not the request's own failure: the device is broken.
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
