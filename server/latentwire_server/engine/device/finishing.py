"""The end of a trajectory: latents to pixels, pixels to files, and the last event.

Decoding runs on the device thread, one image at a time, so that a picture does not depend on its
company. Encoding to a file runs there too where the device is the CPU, which has nothing to gain
from another busy thread; otherwise in a small pool, while the device goes on.
"""

from __future__ import annotations

import resource
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.description import describe
from latentwire_server.engine.device.faults import DeviceBroken, own_failure
from latentwire_server.engine.errors import DeviceFailed, GenerationError, NonFiniteOutput
from latentwire_server.engine.events import FinishReason, Image
from latentwire_server.imaging.decode import made_smaller, paste
from latentwire_server.imaging.encode import encode_image

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.models.protocol import DiffusionModel


class Finisher:
    """Turns finished latents into delivered images."""

    def __init__(self, *, pool: Executor, estimator: Estimator, mask_feather: float) -> None:
        self._pool = pool
        self._mask_feather = mask_feather
        self._estimator = estimator
        self._version = VERSION

    def finish_image(self, trajectory: Trajectory) -> None:
        """Decodes the next image, and delivers it or hands it to the pool.

        Raises:
            NonFiniteOutput: the decoder gave NaN or infinity.
        """
        started = time.monotonic()
        model, index = trajectory.model, trajectory.num_decoded
        latents, generation = trajectory.take_image(), trajectory.generation
        decoded = model.decode(latents)
        if not bool(torch.isfinite(latents).all() & torch.isfinite(decoded).all()):
            raise NonFiniteOutput(step=trajectory.step)
        pixels = self._finished(decoded, trajectory)
        checker = model.safety_checker
        if checker is not None and checker.flags(pixels):
            self._withhold(generation, model, index=index)
        elif model.device_name == "cpu":
            self._deliver(generation, model, index=index, pixels=pixels)
        else:
            self._pool.submit(self._deliver_apart, generation, model, index=index, pixels=pixels)
        self._estimator.record_decode(trajectory.group, seconds=time.monotonic() - started)

    def _finished(self, decoded: torch.Tensor, trajectory: Trajectory) -> NDArray[np.uint8]:
        """Returns what was drawn as it is delivered: at its size, with what was to be kept."""
        source, size = trajectory.source, trajectory.request.delivered_size
        watermark = trajectory.model.watermark
        if size is not None:
            smaller = made_smaller(pixels_of(decoded), width=size[0], height=size[1])
            decoded = torch.from_numpy(smaller).permute(2, 0, 1) / 255
            source = source and source.delivered
        # Scaling would wash it out, and what is kept of a picture stays as it was.
        pixels = pixels_of(decoded if watermark is None else watermark.applied(decoded))
        if source is None or source.mask is None:
            return pixels
        return paste(pixels, original=source.pixels, mask=source.mask, feather=self._mask_feather)

    def _deliver(
        self,
        generation: Generation,
        model: DiffusionModel,
        *,
        index: int,
        pixels: NDArray[np.uint8],
    ) -> None:
        request, revision = generation.request, model.info.revision
        encoded = encode_image(
            pixels,
            image_format=request.output.format.value,
            quality=request.output.quality,
            description=describe(
                request, index=index, version=self._version, model_revision=revision
            ),
        )
        image = Image(
            index=index,
            seed=request.seeds[index],
            media_type=encoded.media_type,
            width=encoded.width,
            height=encoded.height,
            data=encoded.data,
        )
        _hand_over(image, generation, model)

    def _withhold(self, generation: Generation, model: DiffusionModel, *, index: int) -> None:
        """Delivers, in the place of an image that the safety checker flags, that it does."""
        request = generation.request
        width, height = request.file_size
        image = Image(
            index=index,
            seed=request.seeds[index],
            media_type="",
            width=width,
            height=height,
            data=b"",
            finish_reason=FinishReason.FILTERED,
        )
        _hand_over(image, generation, model)

    def _deliver_apart(
        self,
        generation: Generation,
        model: DiffusionModel,
        *,
        index: int,
        pixels: NDArray[np.uint8],
    ) -> None:
        try:
            self._deliver(generation, model, index=index, pixels=pixels)
        except Exception as error:  # Border: a task of the pool
            try:
                failure: GenerationError = own_failure(error, generation.request)
            except DeviceBroken:
                # The device thread will find out by itself, and end the others.
                failure = DeviceFailed()
            generation.fail(failure)


def _hand_over(image: Image, generation: Generation, model: DiffusionModel) -> None:
    if generation.deliver(image):
        generation.complete(
            peak_memory_bytes=peak_memory_bytes(model.device_name),
            model_revision=model.info.revision,
        )


def pixels_of(image: torch.Tensor) -> NDArray[np.uint8]:
    """Returns (3, height, width) in [0, 1] as (height, width, 3) uint8.

    Rounds as diffusers' ``VaeImageProcessor`` does.
    """
    channels_last = image.clamp(0, 1).permute(1, 2, 0).float()
    # Bytes before they leave the device: a quarter of the way for a float.
    pixels: NDArray[np.uint8] = (channels_last * 255).round().to(torch.uint8).cpu().numpy()
    return pixels


def peak_memory_bytes(device_name: str) -> int:
    """Returns the most memory that was in use: the device's, or the process's on the CPU."""
    if device_name.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device_name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def _version() -> str:
    try:
        return metadata.version("latentwire")
    except metadata.PackageNotFoundError:
        return "unknown"


# Read once, here: it reads files, and engines start on the event loop.
VERSION = _version()
