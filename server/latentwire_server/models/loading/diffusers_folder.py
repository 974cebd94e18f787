"""A diffusers folder: checked when it is opened, then read component by component.

Loading threads only. What was checked is what is read: each of its JSON files is parsed once.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, cast

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from latentwire_server.models.components.component_set import LIBRARY_LOCK, Components
from latentwire_server.models.components.placement import check_module
from latentwire_server.models.components.safety_checker import (
    ClipSafetyChecker,
    UnloadedSafetyChecker,
    load_processor,
)
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import digest
from latentwire_server.models.loading.folder_settings import (
    PREVIEW_FILE,
    SETTINGS_FILE,
    folder_settings,
    latent_projection,
)
from latentwire_server.models.loading.inspection import (
    checked_index,
    find_weights,
    has_safety_checker,
    refuse_detours,
    refuse_outside,
)
from latentwire_server.models.overrides import ModelSettings
from latentwire_server.models.text.clip_encoder import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, AutoencoderTiny

    from latentwire_server.models.architectures.family import Family, TextEncoderKind
    from latentwire_server.models.files.checked_files import CheckedFiles
    from latentwire_server.models.files.hub import ModelFolder
    from latentwire_server.models.loading.component_reader import ComponentReader
    from latentwire_server.models.protocol import SafetyChecker

LIBRARY_FAILURES: Final = (OSError, ValueError, RuntimeError, KeyError, TypeError)
"""What the libraries raise on files that are not what they should be."""
_SAFETY_CHECKER: Final = "safety_checker"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lent:
    """Parts of one model that another works with too, so that they are not read again."""

    vae: AutoencoderKL | AutoencoderTiny | None = None
    text_encoders: tuple[TextEncoder, ...] = ()
    """All that the other model has, or none."""


class DiffusersFolder:
    """A model as diffusers saves it."""

    def __init__(
        self,
        found: ModelFolder,
        *,
        source: str,
        files: CheckedFiles,
        variant: str | None,
        uses_safety_checker: bool,
    ) -> None:
        """Checks every file that loading would read.

        Args:
            found: the folder.
            source: what the operator calls it.
            files: reads its files.
            variant: the variant of the weights that will be loaded.
            uses_safety_checker: whether its safety checker is loaded, if it brings one.

        Raises:
            LoadError: a file may not be read, or it is not of a kind that is served.
        """
        self.path: Final = found.path
        self.source: Final = source
        self.variant: Final = variant
        self._files = files
        self._commit = found.commit
        refuse_outside(self.path, root=found.root)
        index = self.json("model_index.json")
        self.index: Final = checked_index(index, source=str(self.path))
        self.has_safety_checker = uses_safety_checker and has_safety_checker(
            index, source=str(self.path)
        )
        self._weights: dict[str, list[Path]] = {}
        for name in self.index.weighted + (_SAFETY_CHECKER,) * self.has_safety_checker:
            if found.has_weights:
                self._weights[name] = find_weights(self.path, name, variant=variant)
            refuse_detours(self.path, name, files=files)
        self.scheduler_config: Final = self.json("scheduler/scheduler_config.json")
        self.settings = ModelSettings()
        if (self.path / SETTINGS_FILE).exists():
            self.settings = folder_settings(self.json(SETTINGS_FILE), source=str(self.path))
        self.projection = self.family.projection
        if (self.path / PREVIEW_FILE).exists():
            self.projection = latent_projection(self.json(PREVIEW_FILE), source=str(self.path))

    @property
    def family(self) -> Family:
        """The family of its pipeline."""
        return self.index.family

    @cached_property
    def revision(self) -> str:
        """The hub's commit, or a digest of its weights, without the safety checker's."""
        weights = [path for name in self.index.weighted for path in self._weights.get(name, ())]
        return self._commit or digest(tuple(weights), folder=self.path)

    def json(self, name: str) -> Mapping[str, object]:
        """Returns the content of one of its JSON files."""
        return self._files.json(self.path / name, source=str(self.path))

    def num_elements(self) -> dict[str, int]:
        """Returns how many numbers the weights of each component have.

        Raises:
            LoadError: a file ends before its tensors do.
        """
        return {
            name: self._files.num_elements(paths, source=self.source, variant=self.variant)
            for name, paths in self._weights.items()
        }

    def read(self, reader: ComponentReader, *, dtype: torch.dtype, lent: Lent) -> Components:
        """Returns its components but for the safety checker, on no device yet.

        Raises:
            LoadError: a component does not load.
        """
        unet: object = diffusers.UNet2DConditionModel
        vae: object = getattr(diffusers, self.index.vae)
        with LIBRARY_LOCK:
            return Components(
                text_encoders=lent.text_encoders
                or tuple(
                    self._text_encoder(kind, reader, dtype=dtype)
                    for kind in self.index.text_encoders
                ),
                unet=cast(
                    "diffusers.UNet2DConditionModel",
                    self.read_component("unet", unet, reader, torch_dtype=dtype),
                ),
                vae=lent.vae
                or cast(
                    "AutoencoderKL | AutoencoderTiny",
                    self.read_component("vae", vae, reader, torch_dtype=dtype),
                ),
                scheduler_config=self.scheduler_config,
                projection=self.projection,
                options=self.index.options,
            )

    def read_safety_checker(
        self, reader: ComponentReader, *, device: torch.device, hides_previews: bool
    ) -> SafetyChecker:
        """Returns the safety checker, on the device, after it has decided once.

        Raises:
            LoadError: it does not load, or fails.
        """
        if not reader.has_weights:
            return UnloadedSafetyChecker(hides_previews=hides_previews)
        source, hint = str(self.path), "; safety_checker=false serves without"
        with LIBRARY_LOCK, named_failures("its safety checker fails", source=source, hint=hint):
            module = self.read_component(
                _SAFETY_CHECKER, StableDiffusionSafetyChecker, reader, dtype=torch.float32
            )
            check_module(module, name=_SAFETY_CHECKER, source=source)
            module.to(device).eval().requires_grad_(requires_grad=False)
            checker = ClipSafetyChecker(
                cast("StableDiffusionSafetyChecker", module),
                load_processor(self.path),
                hides_previews=hides_previews,
            )
            checker.flags(np.zeros((64, 64, 3), np.uint8))
        return checker

    def read_component(
        self, name: str, kind: object, reader: ComponentReader, **options: object
    ) -> torch.nn.Module:
        """Returns one of its components.

        Raises:
            LoadError: it does not load.
        """
        config = self.json(f"{name}/config.json")
        with named_failures(f"{name} does not load", source=str(self.path)):
            return reader.read(kind, self.path / name, config, variant=self.variant, **options)

    def _text_encoder(
        self, kind: TextEncoderKind, reader: ComponentReader, *, dtype: torch.dtype
    ) -> TextEncoder:
        with named_failures(f"{kind.tokenizer} does not load", source=str(self.path)):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                self.path / kind.tokenizer, local_files_only=True
            )
        class_: object = getattr(transformers, kind.class_name)
        module = self.read_component(kind.name, class_, reader, dtype=dtype)
        return TextEncoder(tokenizer, cast("transformers.CLIPTextModel", module), name=kind.name)


@contextmanager
def named_failures(what: str, *, source: str, hint: str = "") -> Iterator[None]:
    """Raises a ``LoadError`` in place of what the libraries raise, which does not say where."""
    try:
        yield
    except (*LIBRARY_FAILURES, ArithmeticError) as error:
        # The libraries' texts run over many lines; the first one says what it is.
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        reason = f"{what} ({type(error).__name__}: {first_line}){hint}"
        raise LoadError(source, reason) from error
