"""Keeps finished images for their URLs: a bounded number, for a while, under unguessable names.

Blocking and thread-safe; the event loop calls everything but ``get`` on a thread. Names are looked
up in a table, so that a caller's path never reaches the file system.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAME_BYTES: Final = 16
"""128 random bits: knowing a name is enough to download the file, as with OpenAI's own URLs."""
_SUFFIXES: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file and how to serve it."""

    path: Path
    media_type: str
    size_bytes: int
    expires_at: float


class FileStore:
    """Files in a folder; the oldest are deleted beyond a number, a size or an age."""

    def __init__(
        self,
        folder: Path,
        *,
        max_files: int,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        # In the order of arrival, which is also that of expiry.
        self._files: dict[str, StoredFile] = {}

    def put(self, data: bytes, *, media_type: str) -> str:
        """Stores a file and returns its name.

        Raises:
            OSError: The disk is full or the folder is gone; no part of the file remains.
        """
        name = secrets.token_urlsafe(_NAME_BYTES) + _SUFFIXES.get(media_type, "")
        path = self._folder / name
        with self._lock:
            try:
                path.write_bytes(data)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            self._files[name] = StoredFile(
                path=path,
                media_type=media_type,
                size_bytes=len(data),
                expires_at=self._clock() + self._ttl_s,
            )
            self._remove_surplus()
        return name

    def get(self, name: str) -> StoredFile | None:
        """Returns a file by name; None if it does not exist or has expired."""
        stored = self._files.get(name)
        return None if stored is None or stored.expires_at <= self._clock() else stored

    def seconds_left(self, stored: StoredFile) -> float:
        """Returns how long a file will still be served."""
        return max(0.0, stored.expires_at - self._clock())

    def remove_expired(self) -> None:
        """Deletes the files that have expired."""
        with self._lock:
            self._remove_surplus()

    def _remove_surplus(self) -> None:
        now = self._clock()
        size_bytes = sum(stored.size_bytes for stored in self._files.values())
        for name, stored in list(self._files.items()):
            is_within = len(self._files) <= self._max_files and size_bytes <= self._max_bytes
            if is_within and stored.expires_at > now:
                return
            del self._files[name]
            stored.path.unlink(missing_ok=True)
            size_bytes -= stored.size_bytes
