"""The events of a generation as callers see them. Frozen values; Pillow only on demand."""

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
    """What every event carries."""

    generation: str
    """Name of the generation: ``generations/{id}``."""
    sequence: int
    """Number of the event in its generation, from 1."""
    event_time: datetime | None
    """When it happened, in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWarning:
    """Something done differently from what the caller may expect."""

    field: str
    reason: str
    message: str
    replacement: str = ""
    """What was taken instead of the field's value; empty where the warning is about no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(EventHeader):
    """The request is valid and has its place. Always first."""

    effective_request: pb.GenerateImageRequest
    """The request with every default filled in; given to ``generate``, it draws the same."""
    seeds: tuple[int, ...]
    """The seed of each image."""
    warnings: tuple[RequestWarning, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(EventHeader):
    """The generation waits."""

    ahead_count: int
    """How many generations are served before it."""
    estimated_wait_s: float | None
    """Until its first step; None while no speed is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoading(EventHeader):
    """The model is being loaded."""

    model: str
    loaded_bytes: int
    total_bytes: int
    """0 when unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(EventHeader):
    """A step is done."""

    phase: str
    """``"encoding"``, ``"denoising"`` or ``"decoding"``; newer servers may know more."""
    step: int
    step_count: int
    fraction: float
    """Share of the whole work that is done, 0 to 1; never falls."""
    estimated_remaining_s: float | None
    """Until the end; None while no speed is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(EventHeader):
    """How an image would look if drawing stopped here."""

    image_index: int
    step: int
    media_type: str
    width: int
    height: int
    data: bytes = field(repr=False)

    def pil(self) -> PillowImage.Image:
        """Returns the picture as a Pillow image.

        Raises:
            ImportError: Pillow is not installed.
        """
        return _open_picture(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(EventHeader):
    """A finished image, whole and checked."""

    index: int
    seed: int
    """The seed that draws this image alone."""
    finish_reason: str
    """``"completed"``, or ``"filtered"``: withheld by a safety filter, without data."""
    media_type: str
    width: int
    height: int
    sha256: bytes = field(repr=False)
    data: bytes = field(repr=False)
    """The image file."""

    @property
    def is_filtered(self) -> bool:
        """Whether a safety filter of the server withheld it: there is no file."""
        return self.finish_reason == "filtered"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the image file and returns its path. The suffix of the path is not looked at.

        Raises:
            ImageFilteredError: A safety filter withheld it.
        """
        self._require_file()
        target = Path(path)
        target.write_bytes(self.data)
        return target

    def pil(self) -> PillowImage.Image:
        """Returns the image as a Pillow image.

        Raises:
            ImageFilteredError: A safety filter withheld it.
            ImportError: Pillow is not installed.
        """
        self._require_file()
        return _open_picture(self.data)

    def _require_file(self) -> None:
        if self.is_filtered:
            msg = f"image {self.index} was withheld by the server's safety filter"
            raise ImageFilteredError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a generation went, in seconds."""

    queued_s: float
    encoding_s: float
    denoising_s: float
    decoding_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(EventHeader):
    """Everything is delivered. Always last."""

    image_count: int
    """How many images came, those that a safety filter withheld among them."""
    timings: Timings
    peak_memory_bytes: int
    """0 when not measured."""
    model_revision: str


Event = Accepted | Queued | ModelLoading | Progress | Preview | Image | Completed


def _open_picture(data: bytes) -> PillowImage.Image:
    from PIL import Image as PillowImage  # noqa: PLC0415 - optional, and slow to import

    picture = PillowImage.open(io.BytesIO(data))
    picture.load()
    return picture
