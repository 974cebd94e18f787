"""Files of models, identified by their content and not by their name.

Only safetensors weights are read, since a pickle can run code, and JSON of a sensible size.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Suffixes of files that torch pickles."""
_MAX_HEADER_BYTES: Final = 100_000_000
_MAX_JSON_BYTES: Final = 10_000_000
_SAMPLE_BYTES: Final = 1 << 20


class CheckedFiles:
    """The files of one model, each parsed once. Loading threads only."""

    def __init__(self) -> None:
        self._json: dict[Path, dict[str, object]] = {}
        self._tensors: dict[Path, dict[str, int]] = {}

    def json(self, path: Path, *, source: str) -> Mapping[str, object]:
        """Returns a JSON object from a file.

        Raises:
            LoadError: there is no such file, or it holds something else.
        """
        if path not in self._json:
            self._json[path] = _read_json(path, source=source)
        return self._json[path]

    def num_elements(self, paths: Iterable[Path], *, source: str, variant: str | None) -> int:
        """Returns how many numbers the weights of a component have, in files that were checked.

        Raises:
            LoadError: a file ends before its tensors do.
        """
        return sum(
            sum(self.tensors(path, source=source).values())
            for path in paths
            # A variant's name stands before the suffix; without one asked for, none is read.
            if variant or "." not in path.stem
        )

    def tensors(self, path: Path, *, source: str) -> Mapping[str, int]:
        """Returns how many numbers each tensor of a checked safetensors file has, by its header.

        Raises:
            LoadError: the file ends before its tensors do.
        """
        if path not in self._tensors:
            try:
                with safe_open(path, framework="numpy") as file:
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            except SafetensorError:
                place = f"{path.parent.name}/{path.name}"
                raise LoadError(source, f"{place} is cut off or damaged") from None
            self._tensors[path] = {name: math.prod(shape) for name, shape in shapes.items()}
        return self._tensors[path]


def check_safetensors(path: Path, *, source: str) -> None:
    """Checks that a file is safetensors, whatever its name says.

    The format: 8 bytes of header length, little-endian, then that many bytes of JSON
    (https://huggingface.co/docs/safetensors).

    Raises:
        LoadError: it is something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        is_sane = len(start) == 8 and 2 <= length <= min(_MAX_HEADER_BYTES, size - 8)  # noqa: PLR2004
        header = file.read(length) if is_sane else b""
    try:
        is_json = isinstance(json.loads(header), dict)
    except (ValueError, RecursionError):
        is_json = False
    if is_json:
        return
    # What torch.save writes: a zip archive since 1.6, before that a bare pickle of protocol 2 on.
    if path.suffix.lower() in PICKLES or start.startswith((b"PK", b"\x80")):
        raise LoadError(source, f"{path.name} is a pickle, which can run code, and is never read")
    raise LoadError(source, f"{path.name} is not a safetensors file, whatever its name says")


def _read_json(path: Path, *, source: str) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise LoadError(source, f"{path.name} is too large to be a configuration")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(source, f"it has no {path.name}") from None
    except (OSError, ValueError, RecursionError):
        raise LoadError(source, f"{path.name} cannot be read as JSON") from None
    if not isinstance(content, dict):
        raise LoadError(source, f"{path.name} is not a JSON object")
    return content


def digest(weights: tuple[Path, ...], *, folder: Path) -> str:
    """Returns ``sha256:`` and a digest that tells one set of weights from another.

    It covers each file's place, its size, and its first and last MiB: reading gigabytes whole would
    take longer than loading them.
    """
    total = hashlib.sha256()
    for path in weights:
        size = path.stat().st_size
        total.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            total.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            total.update(file.read())
    return f"sha256:{total.hexdigest()[:32]}"
