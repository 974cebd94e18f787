"""A temporary folder that ends with its process, even one that was killed.

Each folder is locked by its owner for as long as that lives; the next bridge to start removes the
folders that nobody holds any more. Blocking; called at start and stop only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_PREFIX: Final = "latentwire-bridge-"


class PrivateFolder:
    """A folder that only this user can enter, removed when it is closed."""

    def __init__(self, parent: Path | None = None) -> None:
        """Makes the folder, and removes those of bridges that are no more.

        Args:
            parent: Where to make it; None is the system's folder for temporary files.

        Raises:
            OSError: ``parent`` is no folder in which we may write.
        """
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        while True:
            # mkdtemp gives it mode 0700 and a name that cannot be prepared by somebody else.
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.exists():
                return
            # Another bridge took it for an abandoned one before it was locked.
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(parent: Path) -> None:
    """Removes what killed bridges of this user left behind."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            # Its owner lives.
            continue
        finally:
            os.close(lock)
