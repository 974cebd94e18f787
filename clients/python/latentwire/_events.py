"""The events of a generation. Frozen values; Pillow is imported on demand only."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentwire.errors import ImageFilteredError

if TYPE_CHECKING:
    import os
    from datetime import datetime

    from PIL import Image as PillowImage

    from latentwire.v1 import image_generation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHeader:
    """The fields that all events have."""

    generation: str
    """Name of the generation, ``generations/{id}``."""
    sequence: int
    """Number of the event within its generation, from 1."""
    event_time: datetime | None
    """When the event happened, in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWarning:
    """Something that the server did differently from what the caller may expect."""

    field: str
    """Field of the request, such as ``"prompt"``."""
    reason: str
    """UPPER_SNAKE constant such as ``"PROMPT_TRUNCATED"``."""
    message: str
    """Text for people."""
    replacement: str = ""
    """Text used instead of the field's value; empty if the warning is not about a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(EventHeader):
    """The request is valid and was admitted. Always the first event."""

    effective_request: pb.GenerateImageRequest
    """The request with every default filled in. ``generate`` makes the same images from it."""
    seeds: tuple[int, ...]
    """The seed of each image, in order."""
    warnings: tuple[RequestWarning, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(EventHeader):
    """The generation is waiting for the device."""

    ahead_count: int
    """Number of waiting generations that are served first."""
    estimated_wait_s: float | None
    """Seconds until its first step; None until the server has measured its speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoading(EventHeader):
    """The model is being loaded."""

    model: str
    """Name of the model, ``models/{id}``."""
    loaded_bytes: int
    """Bytes loaded so far, or downloaded so far if the model must be downloaded first."""
    total_bytes: int
    """Bytes to load or download in total; 0 if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(EventHeader):
    """A step is complete."""

    phase: str
    """``"encoding"``, ``"denoising"`` or ``"decoding"``; newer servers may add phases."""
    step: int
    """Denoising steps completed."""
    step_count: int
    """Denoising steps in total."""
    fraction: float
    """Share of the work completed, 0 to 1. Never decreases."""
    estimated_remaining_s: float | None
    """Seconds until the end; None until the server has measured its speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(EventHeader):
    """An image as the model predicts it at one step."""

    image_index: int
    """Index of the image, from 0."""
    step: int
    """Denoising steps completed."""
    media_type: str
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    data: bytes = field(repr=False)
    """The encoded preview, a whole image file."""

    def pil(self) -> PillowImage.Image:
        """Returns the preview as a Pillow image.

        Raises:
            ImportError: Pillow is not installed.
        """
        return _open_image(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(EventHeader):
    """A finished image, whole and verified."""

    index: int
    """Index of the image, from 0."""
    seed: int
    """The seed that makes this image on its own."""
    finish_reason: str
    """``"completed"``, or ``"filtered"`` if a safety filter withheld the image."""
    media_type: str
    """Such as ``"image/png"``."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    sha256: bytes = field(repr=False)
    """SHA-256 of ``data``, 32 bytes; empty if the image was withheld."""
    data: bytes = field(repr=False)
    """The image file; empty if the image was withheld."""

    @property
    def is_filtered(self) -> bool:
        """Whether the server's safety filter withheld the image, so that there is no file."""
        return self.finish_reason == "filtered"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the image file and returns its path. The path's suffix does not change the format.

        Raises:
            ImageFilteredError: A safety filter withheld the image.
        """
        self._require_file()
        target = Path(path)
        target.write_bytes(self.data)
        return target

    def pil(self) -> PillowImage.Image:
        """Returns the image as a Pillow image.

        Raises:
            ImageFilteredError: A safety filter withheld the image.
            ImportError: Pillow is not installed.
        """
        self._require_file()
        return _open_image(self.data)

    def _require_file(self) -> None:
        if self.is_filtered:
            msg = f"image {self.index} was withheld by the server's safety filter"
            raise ImageFilteredError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations of the parts of a generation, in seconds."""

    queued_s: float
    encoding_s: float
    denoising_s: float
    decoding_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(EventHeader):
    """All images were sent. Always the last event."""

    image_count: int
    """Number of images sent, including those that a safety filter withheld."""
    timings: Timings
    peak_memory_bytes: int
    """Peak memory use in bytes; 0 if not measured."""
    model_revision: str
    """A commit on the hub, or ``sha256:`` and a digest of the weights."""


Event = Accepted | Queued | ModelLoading | Progress | Preview | Image | Completed


def _open_image(data: bytes) -> PillowImage.Image:
    from PIL import Image as PillowImage  # noqa: PLC0415 - optional, and slow to import

    image = PillowImage.open(io.BytesIO(data))
    image.load()
    return image
