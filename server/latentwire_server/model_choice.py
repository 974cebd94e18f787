"""From the settings to a model: which one, under which id, and how it is loaded."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.types import Batching
from latentwire_server.models.source import EMBEDDED_ID, LoadError, ModelSource, embedded_source
from latentwire_server.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.models.model import DiffusionModel
    from latentwire_server.settings import Settings

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToLoad:
    """The model that will be served."""

    id: str
    load: Callable[[], DiffusionModel]
    """Loads it, on any thread. Raises ``SettingsError`` where the operator is to blame."""


def chosen_model(settings: Settings) -> ModelToLoad:
    """Returns the model that the settings name.

    Raises:
        SettingsError: it is a folder or file that is not there.
    """
    source = source_of(settings)
    if _looks_local(source.source) and not Path(source.source).expanduser().exists():
        message = f"model={settings.model!r}: there is no such folder or file, and it is no hub id"
        raise SettingsError(message)
    return ModelToLoad(id=source.id, load=lambda: _load(source))


def source_of(settings: Settings) -> ModelSource:
    """Returns where the model comes from; its id is the last part of that, if none is given."""
    backend = settings.denoiser_backend
    if backend == "auto" and settings.batching is Batching.REPRODUCIBLE:
        # A choice by measured speed may fall otherwise after the next start, and bytes with it.
        backend = "eager"
    if settings.model == EMBEDDED_ID:
        source = embedded_source(device=settings.device, dtype=settings.dtype, backend=backend)
        return replace(source, id=settings.model_id or source.id)
    name = PurePath(settings.model).name.removesuffix(".safetensors")
    return ModelSource(
        id=settings.model_id or _NOT_IN_IDS.sub("-", name).strip("-") or "model",
        source=settings.model,
        revision=settings.revision,
        variant=settings.variant,
        dtype=settings.dtype,
        device=settings.device,
        backend=backend,
        single_file_config=settings.single_file_config,
        safety_checker=settings.safety_checker,
        unchecked_previews=settings.unchecked_previews,
    )


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _load(source: ModelSource) -> DiffusionModel:
    # Diffusers and transformers take seconds to import: the server listens meanwhile.
    from diffusers.utils import logging as diffusers_logging  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from latentwire_server.models.loading import load_model  # noqa: PLC0415
    from latentwire_server.models.precision import PrecisionError  # noqa: PLC0415
    from latentwire_server.models.unet import BackendError  # noqa: PLC0415

    for library in (diffusers_logging, transformers_logging):
        # Both write to stderr past the log, in between its lines.
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        return load_model(source)
    except (BackendError, LoadError, PrecisionError) as error:
        raise SettingsError(str(error)) from error
    except Exception as error:
        # The libraries fail in many ways; the operator gets one line, and the rest on demand.
        _logger.debug("loading failed model=%s", source.source, exc_info=True)
        message = f"model {source.source!r}: cannot be loaded ({type(error).__name__}: {error})"
        raise SettingsError(message) from error
