"""Finishes trajectories: decodes latents into pixels, encodes files, publishes the last events.

Decoding runs on the device thread, one image at a time, so that an image does not depend on the
others. Encoding to a file runs there too where the device is the CPU, which gains nothing from
another busy thread; otherwise it runs in a small pool while the device goes on.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.device.faults import DeviceBroken, as_generation_error
from latentwire_server.engine.errors import DeviceFailed, GenerationError, NonFiniteOutput
from latentwire_server.engine.events import FinishReason, Image
from latentwire_server.imaging.compose import paste, scaled_down
from latentwire_server.imaging.encode import encode_image

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.engine.request import Describe
    from latentwire_server.models.protocol import DiffusionModel


class Finisher:
    """Turns finished latents into delivered images."""

    def __init__(
        self, *, pool: Executor, estimator: Estimator, mask_feather: float, describe: Describe
    ) -> None:
        self._pool = pool
        self._mask_feather = mask_feather
        self._estimator = estimator
        self._describe = describe

    def finish_image(self, trajectory: Trajectory) -> None:
        """Decodes the next image and delivers it, or hands it to the pool.

        Raises:
            NonFiniteOutput: The decoder gave NaN or infinity.
        """
        started = time.monotonic()
        model, index = trajectory.model, trajectory.num_decoded
        latents, generation = trajectory.take_image(), trajectory.generation
        decoded = model.decode(latents)
        if not bool(torch.isfinite(latents).all() & torch.isfinite(decoded).all()):
            raise NonFiniteOutput(step=trajectory.step)
        pixels = self._delivered_pixels(decoded, trajectory)
        checker = model.safety_checker
        if checker is not None and checker.flags(pixels):
            self._deliver(generation, model, index=index, pixels=None)
        elif model.device_name == "cpu":
            self._deliver(generation, model, index=index, pixels=pixels)
        else:
            self._pool.submit(self._deliver_in_pool, generation, model, index=index, pixels=pixels)
        self._estimator.record_decode(trajectory.group, seconds=time.monotonic() - started)

    def _delivered_pixels(self, decoded: torch.Tensor, trajectory: Trajectory) -> NDArray[np.uint8]:
        """Returns a decoded image at the size of the files, with the unmasked region pasted in."""
        source, size = trajectory.source, trajectory.request.delivered_size
        watermark = trajectory.model.watermark
        if size is not None:
            smaller = scaled_down(pixels_of(decoded), width=size[0], height=size[1])
            decoded = torch.from_numpy(smaller).permute(2, 0, 1) / 255
            source = source and source.delivered
        # After scaling, which would weaken it, and before the original pixels, which stay unmarked.
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
        pixels: NDArray[np.uint8] | None,
    ) -> None:
        """Delivers an image; without a file if it has no pixels, because it is withheld."""
        request, revision = generation.request, model.info.revision
        width, height = request.file_size
        media_type, data, finish_reason = "", b"", FinishReason.FILTERED
        if pixels is not None:
            encoded = encode_image(
                pixels,
                image_format=request.output.format.value,
                quality=request.output.quality,
                description=self._describe(request, index, revision),
            )
            media_type, data = encoded.media_type, encoded.data
            finish_reason = FinishReason.COMPLETED
        image = Image(
            index=index,
            seed=request.seeds[index],
            media_type=media_type,
            width=width,
            height=height,
            data=data,
            finish_reason=finish_reason,
        )
        if generation.deliver(image):
            generation.complete(
                peak_memory_bytes=peak_memory_bytes(model.device_name), model_revision=revision
            )

    def _deliver_in_pool(
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
                failure: GenerationError = as_generation_error(error, generation.request)
            except DeviceBroken:
                # The device thread will notice by itself and end the other generations.
                failure = DeviceFailed()
            generation.fail(failure)


def pixels_of(image: torch.Tensor) -> NDArray[np.uint8]:
    """Returns (3, height, width) in [0, 1] as (height, width, 3) uint8.

    Rounds as diffusers' ``VaeImageProcessor`` does.
    """
    channels_last = image.clamp(0, 1).permute(1, 2, 0).float()
    # Converted to bytes on the device: a quarter of the data to copy.
    pixels: NDArray[np.uint8] = (channels_last * 255).round().to(torch.uint8).cpu().numpy()
    return pixels


def peak_memory_bytes(device_name: str) -> int:
    """Returns the peak memory use of the device, or of the process where the device is the CPU."""
    if device_name.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device_name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
