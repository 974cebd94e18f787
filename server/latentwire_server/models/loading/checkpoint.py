"""A single-file checkpoint, as Stable Diffusion was first published. Loading threads only.

The file holds weights alone. Its configuration and tokenizer come from a diffusers folder or hub
repository: one that the operator names, or the origin that diffusers finds out and fetches.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

import diffusers
from diffusers.loaders.single_file_utils import SingleFileComponentError

from latentwire_server.models.components.component_set import LIBRARY_LOCK, Components
from latentwire_server.models.errors import LoadError
from latentwire_server.models.families import FAMILIES
from latentwire_server.models.files.checked_files import check_safetensors, digest
from latentwire_server.models.files.hub import ModelFolder
from latentwire_server.models.loading.diffusers_folder import (
    LIBRARY_FAILURES,
    DiffusersFolder,
    Lent,
)
from latentwire_server.models.loading.inspection import allowed_classes
from latentwire_server.models.model_options import local_path
from latentwire_server.models.overrides import ModelSettings
from latentwire_server.models.text.clip_encoder import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny
    from transformers import CLIPTextModel, CLIPTokenizer

    from latentwire_server.models.architectures.family import Family
    from latentwire_server.models.files.checked_files import CheckedFiles
    from latentwire_server.models.loading.component_reader import ComponentReader

_PREFIXES: Final = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
"""Of the names of a component's tensors."""


class Checkpoint:
    """A model in one file."""

    has_safety_checker: Final = False
    settings: Final = ModelSettings()

    def __init__(self, path: Path, *, source: str, files: CheckedFiles, config: str | None) -> None:
        """Checks that the file is safetensors.

        Args:
            path: the file.
            source: what the operator calls it.
            files: reads its files.
            config: a diffusers folder or hub id with its configuration and tokenizer.

        Raises:
            LoadError: it is something else.
        """
        check_safetensors(path, source=source)
        self.source: Final = source
        self._path = path
        self._files = files
        self._config = config

    @property
    def family(self) -> Family:
        """The family that it is of, by the names of its tensors.

        Raises:
            LoadError: it is of none that is served.
        """
        names = self._files.tensors(self._path, source=self.source)
        for family in FAMILIES:
            if any(name.startswith(family.single_file_marker) for name in names):
                return family
        known = ", ".join(family.name for family in FAMILIES)
        raise LoadError(self.source, f"it is no checkpoint of a family that is served: {known}")

    @cached_property
    def revision(self) -> str:
        """A digest of the file."""
        return digest((self._path,), folder=self._path.parent)

    @property
    def has_configuration(self) -> bool:
        """Whether its configuration is in a folder of this machine."""
        path = None if self._config is None else local_path(self._config)
        return path is not None and path.is_dir()

    def num_elements(self) -> dict[str, int]:
        """Returns how many numbers the weights of each component have; text encoders as one.

        Raises:
            LoadError: the file ends before its tensors do.
        """
        tensors = self._files.tensors(self._path, source=self.source)
        found = {
            component: sum(size for name, size in tensors.items() if name.startswith(prefix))
            for component, prefix in _PREFIXES.items()
        }
        return {**found, "text_encoders": sum(tensors.values()) - sum(found.values())}

    def read(self, reader: ComponentReader, *, dtype: torch.dtype, lent: Lent) -> Components:
        """Returns its components, on no device yet.

        Raises:
            LoadError: it is not what it should be, or its configuration cannot be had.
        """
        if not reader.has_weights:
            return self._configuration().read(reader, dtype=dtype, lent=lent)
        family = self.family
        options: dict[str, object] = {"torch_dtype": dtype}
        if lent.vae is not None:
            options["vae"] = lent.vae
        if self._config is not None:
            path = local_path(self._config)
            options["config"] = self._config if path is None else str(path)
            options["local_files_only"] = self.has_configuration
        kind = cast("type[_Pipeline]", getattr(diffusers, family.single_file_pipeline))
        failures = (SingleFileComponentError, AttributeError, *LIBRARY_FAILURES)
        try:
            with LIBRARY_LOCK:
                pipeline = kind.from_single_file(
                    str(self._path), **family.single_file_options, **options
                )
        except failures as error:
            reason = f"it does not load as a {family.name} checkpoint ({type(error).__name__})"
            if self._config is None:
                reason += "; without the hub, single_file_config must name a folder with its"
                reason += " settings"
            raise LoadError(self.source, reason) from error
        return self._components(pipeline)

    def _configuration(self) -> DiffusersFolder:
        path = Path(cast("str", self._config)).expanduser().absolute()
        return DiffusersFolder(
            # It may be a snapshot of the hub, whose links lead to other folders.
            ModelFolder(path=path, root=Path(path.anchor), has_weights=False),
            source=self.source,
            files=self._files,
            variant=None,
            uses_safety_checker=False,
        )

    def _components(self, pipeline: _Pipeline) -> Components:
        """Returns the components of what diffusers made of it."""
        family, parts = self.family, pipeline.components
        encoders = [kind for kind in family.text_encoders if parts.get(kind.name) is not None]
        for name, (_, classes) in allowed_classes(encoders).items():
            class_name = type(parts[name]).__name__
            if class_name not in classes:
                reason = f"{name} is a {class_name}, which is not supported"
                raise LoadError(self.source, reason)
        scheduler = cast("diffusers.DDIMScheduler", parts["scheduler"])
        return Components(
            text_encoders=tuple(
                TextEncoder(
                    cast("CLIPTokenizer", parts[kind.tokenizer]),
                    cast("CLIPTextModel", parts[kind.name]),
                    name=kind.name,
                )
                for kind in encoders
            ),
            unet=cast("diffusers.UNet2DConditionModel", parts["unet"]),
            vae=cast("AutoencoderKL | AutoencoderTiny", parts["vae"]),
            scheduler_config=dict(scheduler.config, _class_name=type(scheduler).__name__),
            projection=family.projection,
            options={
                name: bool(pipeline.config.get(name, default))
                for name, default in family.options.items()
            },
        )


class _Pipeline(Protocol):
    components: Mapping[str, object]
    config: Mapping[str, object]

    @classmethod
    def from_single_file(cls, path: str, **options: object) -> Self: ...
