"""From the settings to models: which ones, under which ids, and how each is loaded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentwire_server.models.components.watermark import MISSING_WATERMARK
from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import ModelSize
from latentwire_server.models.model_options import EMBEDDED_ID
from latentwire_server.settings.files import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latentwire_server.models.model_options import ModelEntry
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec
    from latentwire_server.settings.settings import Settings

_logger: Final = logging.getLogger(__name__)


Report = Callable[[int, int], None]
"""Takes the bytes that are loaded, and those to load in all. Any thread."""


class ModelLoadError(SettingsError):
    """A model cannot be loaded: one line for the operator, and a reason for callers."""

    def __init__(self, message: str, *, reason: str) -> None:
        """Takes both; the reason names no path and quotes no library."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToLoad:
    """A model that will be served. Its functions are called in threads that load models."""

    id: str
    load: Callable[[Report], DiffusionModel]
    """Loads it, and reports how far it is. Raises ``ModelLoadError``."""
    load_eager: Callable[[Report], DiffusionModel] | None = None
    """Loads it without compiling anything, where that leaves too little memory; None: it must not.
    """
    measure: Callable[[Report], ModelSize] = lambda _report: ModelSize(weights_bytes=0)
    """Returns what it will take; downloads its weights, where they are not here, and reports that.

    Raises ``ModelLoadError``.
    """
    spec: Callable[[], ModelSpec | None] = lambda: None
    """Returns what its configuration tells; None where that cannot be read without its weights.

    Raises ``ModelLoadError``.
    """
    fetch_spec: Callable[[], ModelSpec | None] = lambda: None
    """The same, but downloads the configuration where it is not on this machine."""
    aliases: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    """What replaces its own limits, by field of ``ModelLimits``."""
    preload: bool = True
    """Whether it is loaded before the server is ready."""


def chosen_models(settings: Settings) -> tuple[ModelToLoad, ...]:
    """Returns the models that the settings name, the default one first.

    Raises:
        SettingsError: one names a folder, a file or a package that is not there.
    """
    _check_folder(settings.embeddings_folder, field="embeddings_folder")
    if not settings.models:
        _check_there(settings.model, field="model")
    for index, listed in enumerate(settings.models):
        place, owner = f"models[{index}].", f", of the model {listed.id!r}"
        _check_folder(listed.embeddings_folder, field=f"{place}embeddings_folder", owner=owner)
        _check_there(listed.source, field=f"{place}source", owner=owner)
    for index, entry in enumerate(settings.entries):
        place = f"models[{index}]." if settings.models else ""
        owner = f", of the model {entry.id!r}" if settings.models else ""
        for name in ("refiner", "vae"):
            _check_there(getattr(entry, name), field=f"{place}{name}", owner=owner)
        if entry.watermark and importlib.util.find_spec("imwatermark") is None:
            message = f"{place}watermark=true: {MISSING_WATERMARK}"
            raise SettingsError(message)
    return tuple(
        _to_load(entry, settings, is_first=index == 0)
        for index, entry in enumerate(settings.entries)
    )


def _check_folder(folder: Path | None, *, field: str, owner: str = "") -> None:
    if folder is not None and not folder.expanduser().is_dir():
        message = f"{field}={str(folder)!r}{owner}: there is no such folder"
        raise SettingsError(message)


def _check_there(source: str | None, *, field: str, owner: str = "") -> None:
    if source in (None, EMBEDDED_ID) or not _looks_local(source):
        return
    if not Path(source).expanduser().exists():
        why = "there is no such folder or file, and it is no hub id"
        message = f"{field}={source!r}{owner}: {why}"
        raise SettingsError(message)


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _to_load(entry: ModelEntry, settings: Settings, *, is_first: bool) -> ModelToLoad:
    may_do_without = entry.denoiser_backend == "auto"
    eager = entry.model_copy(update={"denoiser_backend": "eager"})
    return ModelToLoad(
        id=entry.id,
        load=partial(_load, entry),
        load_eager=partial(_load, eager) if may_do_without else None,
        measure=partial(_measure, entry),
        spec=partial(_spec, entry),
        fetch_spec=partial(_spec, entry, fetches=True),
        preload=is_first if entry.preload is None else entry.preload,
        aliases=entry.aliases,
        limits={
            name: limit
            for name, limit in settings.limit_overrides.items()
            if getattr(entry.limits, name, None) is None
        },
    )


def _load(entry: ModelEntry, report: Report) -> DiffusionModel:
    with _told_apart(entry):
        from latentwire_server.models.loading.loading import load_model  # noqa: PLC0415

        return load_model(entry, report=report)


def _measure(entry: ModelEntry, report: Report) -> ModelSize:
    with _told_apart(entry):
        from latentwire_server.models.files.hub import reporting_downloads  # noqa: PLC0415
        from latentwire_server.models.loading.loading import model_size  # noqa: PLC0415

        with reporting_downloads(report):
            return model_size(entry)


def _spec(entry: ModelEntry, *, fetches: bool = False) -> ModelSpec | None:
    with _told_apart(entry):
        from latentwire_server.models.loading.loading import read_spec  # noqa: PLC0415

        return read_spec(entry, fetches=fetches)


def _for_callers(error: LoadError) -> str:
    """Returns the reason without what a library said: that stands in brackets, and names paths."""
    return error.reason if error.__cause__ is None else error.reason.partition(" (")[0]


@contextmanager
def _told_apart(entry: ModelEntry) -> Iterator[None]:
    """Tells what goes wrong to the operator, and the part of it that is theirs to callers."""
    # Diffusers and transformers take seconds to import: the server listens meanwhile.
    from diffusers.utils import logging as diffusers_logging  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from latentwire_server.models.errors import BackendError, PrecisionError  # noqa: PLC0415

    for library in (diffusers_logging, transformers_logging):
        # Both write to stderr past the log, in between its lines.
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    except LoadError as error:
        raise ModelLoadError(str(error), reason=_for_callers(error)) from error
    except (BackendError, PrecisionError) as error:
        raise ModelLoadError(str(error), reason=str(error)) from error
    except Exception as error:
        # The libraries fail in many ways; the operator gets one line, and the rest on demand.
        _logger.debug("loading failed model=%s source=%s", entry.id, entry.location, exc_info=True)
        reason = f"it cannot be loaded ({type(error).__name__})"
        message = f"model {entry.location!r}: cannot be loaded ({type(error).__name__}: {error})"
        raise ModelLoadError(message, reason=reason) from error
