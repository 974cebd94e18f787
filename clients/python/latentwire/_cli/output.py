"""The destination of images: file names, formats by suffix, standard output."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentwire._cli.exit_status import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire._events import Image

_STANDARD_OUTPUT: Final = "-"
_FORMAT_OF_SUFFIX: Final[Mapping[str, str]] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
_SUFFIX_OF_MEDIA_TYPE: Final[Mapping[str, str]] = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The destination of one command's images."""

    path: Path | None
    """None: each image is named after its seed."""
    to_stdout: bool
    image_format: str | None
    """The format to request; None leaves it to the server."""

    def write(self, image: Image, *, num_images: int) -> Path | None:
        """Writes one of ``num_images`` images and returns its path, None for standard output."""
        if self.to_stdout:
            sys.stdout.buffer.write(image.data)
            sys.stdout.buffer.flush()
            return None
        return image.save(self._path_for(image, num_images=num_images))

    def _path_for(self, image: Image, *, num_images: int) -> Path:
        if self.path is None:
            suffix = _SUFFIX_OF_MEDIA_TYPE.get(image.media_type, "")
            return Path(f"image-{image.seed}{suffix}")
        if num_images == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{image.index}{self.path.suffix}")


def output_from(output: str | None, *, image_format: str | None, num_images: int | None) -> Output:
    """Returns the destination for the values of ``--output``, ``--format`` and ``--num-images``.

    Raises:
        UsageError: It is not writable, or its suffix is unknown or contradicts the format.
    """
    if output == _STANDARD_OUTPUT:
        if num_images is not None and num_images > 1:
            msg = "standard output holds one image; give -o a file name for several"
            raise UsageError(msg)
        return Output(path=None, to_stdout=True, image_format=image_format)
    if output is None:
        return Output(path=None, to_stdout=False, image_format=image_format)
    path = Path(output)
    suffix_format = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if path.suffix and suffix_format is None and image_format is None:
        msg = f"{path}: unknown suffix {path.suffix}; use {', '.join(_FORMAT_OF_SUFFIX)}"
        raise UsageError(msg)
    if suffix_format and image_format and suffix_format != image_format:
        msg = f"{path}: the suffix means {suffix_format}, but --format is {image_format}"
        raise UsageError(msg)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        msg = f"{path}: not writable"
        raise UsageError(msg)
    return Output(path=path, to_stdout=False, image_format=image_format or suffix_format)
