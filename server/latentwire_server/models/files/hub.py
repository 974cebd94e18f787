"""Finds the folder of a model: on this machine, or on the Hugging Face hub, and downloads it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from huggingface_hub import DryRunFileInfo, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from latentwire_server.models.errors import LoadError
from latentwire_server.models.model_options import local_path

if TYPE_CHECKING:
    from collections.abc import Sequence

Report = Callable[[int, int], None]
"""Takes the bytes that have been read so far, and the bytes in all. Any thread."""

_BYTES_BAR: Final = "huggingface_hub.snapshot_download"
"""What ``snapshot_download`` calls the bar on which it counts the bytes of all files."""
_WEIGHTS: Final = ("*.safetensors", "*.safetensors.index*.json")


class Fetch(Enum):
    """What may be downloaded from the hub; what is in its local cache is used in any case."""

    NOTHING = auto()
    CONFIGURATION = auto()
    """Everything but weights."""
    EVERYTHING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """Where a model's files are."""

    path: Path
    root: Path
    """The folder that its links may not lead out of."""
    commit: str | None = None
    """Of the hub's repository; None for a folder of this machine."""
    has_weights: bool = True
    """False for a hub's folder from which only the configuration was fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The hub, as far as it may be used, and who hears of the bytes that are downloaded."""

    fetch: Fetch = Fetch.EVERYTHING
    report: Report | None = None

    def folder(
        self,
        source: str,
        *,
        revision: str | None = None,
        wanted: Sequence[str],
        unwanted: Sequence[str] = (),
    ) -> ModelFolder:
        """Returns the folder that a source names, downloaded if it is a hub id.

        Args:
            source: a folder or a hub id.
            revision: of the hub.
            wanted: patterns of the files that are used of a hub repository.
            unwanted: patterns of files among those that are not.

        Raises:
            LoadError: there is no such folder, or the hub does not have it or cannot be reached.
        """
        path = local_path(source)
        if path is None:
            snapshot = self._download(
                source, revision=revision, wanted=list(wanted), unwanted=list(unwanted)
            )
            return ModelFolder(
                path=snapshot,
                # The hub's cache keeps the files in `blobs`, beside `snapshots`.
                root=snapshot.parent.parent,
                commit=snapshot.name,
                has_weights=self.fetch is Fetch.EVERYTHING,
            )
        if not path.is_dir():
            raise LoadError(source, "there is no such folder or file, and it is no hub id")
        return ModelFolder(path=path, root=path)

    def _download(
        self, source: str, *, revision: str | None, wanted: list[str], unwanted: list[str]
    ) -> Path:
        fetches_weights = self.fetch is Fetch.EVERYTHING
        download = partial(
            snapshot_download,
            source,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=unwanted if fetches_weights else [*unwanted, *_WEIGHTS],
            local_files_only=self.fetch is Fetch.NOTHING,
        )
        silent = partial(download, tqdm_class=_bar(None, total_bytes=0))
        try:
            if self.report is None or not fetches_weights:
                return Path(silent())
            total_bytes = _missing_bytes(silent)
            return Path(download(tqdm_class=_bar(self.report, total_bytes=total_bytes)))
        except LocalEntryNotFoundError:
            reason = "it is neither in the local cache, nor can the hub be reached"
        except HFValidationError:
            reason = "it is no folder, no file and no valid hub id"
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", "no")
            reason = f"the hub answered with status {status}; private models need HF_TOKEN"
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else "no network"
            reason = f"the download failed: {why}"
        raise LoadError(source, reason)


def _missing_bytes(download: Callable[..., object]) -> int:
    """Returns the bytes that are not on this machine yet; 0 where the hub does not say."""
    try:
        files = cast("list[DryRunFileInfo]", download(dry_run=True))
    except (DryRunError, HfHubHTTPError, OSError):
        # The download itself gives a better reason.
        return 0
    return sum(one.file_size or 0 for one in files if one.will_download)


def _bar(report: Report | None, *, total_bytes: int) -> type[tqdm]:
    """Returns a progress bar for ``snapshot_download`` that shows nothing and reports bytes."""
    lock = threading.Lock()
    num_bytes = 0

    class Bar(tqdm):
        def __init__(self, *args: object, name: str | None = None, **options: object) -> None:
            super().__init__(*args, name=name, **{**options, "disable": True})  # type: ignore[no-untyped-call]  # untyped library
            self._counts_bytes = name == _BYTES_BAR

        def update(self, n: float | None = 1) -> None:
            nonlocal num_bytes
            if report is not None and self._counts_bytes:
                # Several files are fetched at a time, each on a thread.
                with lock:
                    num_bytes += int(n or 0)
                    report(min(num_bytes, total_bytes), total_bytes)

    return Bar
