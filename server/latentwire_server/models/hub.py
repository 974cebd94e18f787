"""Finds a model's folder: on this machine, or on the Hugging Face hub, from where it is fetched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from latentwire_server.models.reading import has_weights
from latentwire_server.models.source import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    token: str | None,
    patterns: tuple[Sequence[str], Sequence[str]],
) -> ModelFolder:
    """Returns the folder that a source means; fetches it where that is a hub id.

    Args:
        source: a folder or a hub id.
        revision: of the hub.
        token: of the hub.
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
    snapshot = _download(source, revision=revision, token=token, patterns=patterns)
    # The hub's cache keeps the files in `blobs`, beside `snapshots`.
    return ModelFolder(path=snapshot, root=snapshot.parent.parent, commit=snapshot.name)


def _download(
    source: str,
    *,
    revision: str | None,
    token: str | None,
    patterns: tuple[Sequence[str], Sequence[str]],
) -> Path:
    wanted, unwanted = patterns
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                token=token,
                allow_patterns=list(wanted),
                ignore_patterns=list(unwanted),
                # Nothing is downloaded to look at a configuration.
                local_files_only=not has_weights(),
            )
        )
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
