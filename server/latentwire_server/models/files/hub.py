"""Finds a model's folder: on this machine, or on the Hugging Face hub, from where it is fetched."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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
from latentwire_server.models.loading.reading import has_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Report = Callable[[int, int], None]

_BYTES_BAR: Final = "huggingface_hub.snapshot_download"
"""What ``snapshot_download`` calls the bar on which it counts the bytes of all files."""
_WEIGHTS: Final = ("*.safetensors", "*.safetensors.index*.json")
_report: Final[ContextVar[Report | None]] = ContextVar("report", default=None)
_fetches_configurations: Final[ContextVar[bool]] = ContextVar("fetches", default=False)


@contextmanager
def reporting_downloads(report: Report) -> Iterator[None]:
    """Tells of each download, within the block and on this thread, its bytes and those of all."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


@contextmanager
def fetching_configurations() -> Iterator[None]:
    """Downloads, within the block and on this thread, what is read of models without weights."""
    token = _fetches_configurations.set(True)
    try:
        yield
    finally:
        _fetches_configurations.reset(token)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """Where a model's files are."""

    path: Path
    root: Path
    """What its links may reach."""
    commit: str | None
    """The hub's, if it is from there."""


def model_folder(
    source: str,
    *,
    revision: str | None,
    patterns: tuple[Sequence[str], Sequence[str]],
) -> ModelFolder:
    """Returns the folder that a source means; fetches it where that is a hub id.

    Args:
        source: a folder or a hub id.
        revision: of the hub.
        patterns: which files of a hub repository are wanted, and which of those are not.

    Raises:
        LoadError: there is no such folder, and the hub has it not or cannot be asked.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return ModelFolder(path=path, root=path, commit=None)
    looks_local = path.is_absolute() or source.startswith((".", "~"))
    if looks_local or source.count("/") != 1:
        raise LoadError(source, "there is no such folder or file, and it is no hub id")
    snapshot = _download(source, revision=revision, patterns=patterns)
    # The hub's cache keeps the files in `blobs`, beside `snapshots`.
    return ModelFolder(path=snapshot, root=snapshot.parent.parent, commit=snapshot.name)


def _download(
    source: str,
    *,
    revision: str | None,
    patterns: tuple[Sequence[str], Sequence[str]],
) -> Path:
    wanted, unwanted = patterns
    download = partial(
        snapshot_download,
        source,
        revision=revision,
        allow_patterns=list(wanted),
        ignore_patterns=list(unwanted),
    )
    report = _report.get()
    try:
        if not has_weights():
            # Nothing is downloaded to look at a configuration, unless that is what is wanted.
            return Path(
                download(
                    ignore_patterns=[*unwanted, *_WEIGHTS],
                    local_files_only=not _fetches_configurations.get(),
                    tqdm_class=_bar(None, total_bytes=0),
                )
            )
        if report is None:
            return Path(download(tqdm_class=_bar(None, total_bytes=0)))
        total_bytes = _missing_bytes(partial(download, tqdm_class=_bar(None, total_bytes=0)))
        return Path(download(tqdm_class=_bar(report, total_bytes=total_bytes)))
    except LocalEntryNotFoundError:
        reason = "it is neither in the local cache, nor can the hub be reached"
    except HFValidationError:
        reason = "it is no folder, no file and no valid hub id"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        reason = f"the hub answered with status {status}; private models need HF_TOKEN"
    except OSError as error:
        reason = f"the download failed: {os.strerror(error.errno) if error.errno else 'no network'}"
    raise LoadError(source, reason)


def _missing_bytes(download: Callable[..., object]) -> int:
    """Returns what is not on this machine yet; 0 where that is not known."""
    try:
        files = cast("list[DryRunFileInfo]", download(dry_run=True))
    except (DryRunError, HfHubHTTPError, OSError):
        # The download itself tells better why.
        return 0
    return sum(one.file_size or 0 for one in files if one.will_download)


def _bar(report: Report | None, *, total_bytes: int) -> type[tqdm]:
    """Returns the progress bar that ``snapshot_download`` is to draw, which draws nothing."""
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
