"""An autoencoder that replaces a model's own. Loading threads only."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, cast

import diffusers

from latentwire_server.models.components.component_set import LIBRARY_LOCK
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import digest
from latentwire_server.models.loading.diffusers_folder import named_failures
from latentwire_server.models.loading.inspection import (
    VAES,
    find_weights,
    refuse_detours,
    refuse_outside,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny

    from latentwire_server.models.files.checked_files import CheckedFiles
    from latentwire_server.models.files.hub import ModelFolder
    from latentwire_server.models.loading.component_reader import ComponentReader


class AutoencoderFolder:
    """A folder with an autoencoder, in itself or in its ``vae``."""

    def __init__(self, found: ModelFolder, *, source: str, files: CheckedFiles) -> None:
        """Checks every file that loading would read.

        Args:
            found: the folder.
            source: what the operator calls it.
            files: reads its files.

        Raises:
            LoadError: a file may not be read, or it is not an autoencoder that is served.
        """
        folder = found.path
        refuse_outside(folder, root=found.root)
        place = folder if (folder / "config.json").exists() else folder / "vae"
        # A folder such as "." has no name of its own.
        place = place.resolve() if place == folder else place
        self._config: Final = files.json(place / "config.json", source=str(folder))
        self._class_name = self._config.get("_class_name")
        if self._class_name not in VAES:
            known = ", ".join(VAES)
            reason = f"it is {self._class_name!r}, no autoencoder; supported: {known}"
            raise LoadError(str(folder), reason)
        self._source = source
        self._place = place
        self._files = files
        self._commit = found.commit
        self._weights: list[Path] = []
        if found.has_weights:
            self._weights = find_weights(place.parent, place.name, variant=None)
        refuse_detours(place.parent, place.name, files=files)

    @cached_property
    def revision(self) -> str:
        """The hub's commit, or a digest of its weights."""
        return self._commit or digest(tuple(self._weights), folder=self._place)

    def num_elements(self) -> int:
        """Returns how many numbers its weights have.

        Raises:
            LoadError: a file ends before its tensors do.
        """
        return self._files.num_elements(self._weights, source=self._source, variant=None)

    def read(
        self, reader: ComponentReader, *, dtype: torch.dtype
    ) -> AutoencoderKL | AutoencoderTiny:
        """Returns the autoencoder.

        Raises:
            LoadError: it does not load.
        """
        kind: object = getattr(diffusers, str(self._class_name))
        with LIBRARY_LOCK, named_failures("the autoencoder does not load", source=self._source):
            vae = reader.read(kind, self._place, self._config, torch_dtype=dtype)
        return cast("AutoencoderKL | AutoencoderTiny", vae)
