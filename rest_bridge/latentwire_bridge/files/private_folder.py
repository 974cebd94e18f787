"""A temporary folder that does not outlive its process for long, even if that is killed.

The owner locks its folder; a bridge that starts removes all folders that are no longer locked.
Blocking; used at start and stop only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "latentwire-bridge-"


class PrivateFolder:
    """A folder that only this user can enter. Closing removes it."""

    def __init__(self, parent: Path | None = None) -> None:
        """Creates the folder, and removes those of bridges that were killed.

        Args:
            parent: Where to create it; None is the system's folder for temporary files.

        Raises:
            OSError: ``parent`` is not a writable folder.
        """
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        while True:
            # mkdtemp gives it mode 0700 and a name that no other user can predict.
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.exists():
                return
            # Another bridge took it for abandoned before it was locked.
            os.close(self._lock)

    def close(self) -> None:
        """Removes the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(parent: Path) -> None:
    """Removes the folders that killed bridges of this user left behind."""
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
            # Its owner is alive.
            continue
        finally:
            os.close(lock)
