"""From the settings to models: which ones, under which ids, and how each is loaded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from latentwire_server.engine.settings import Batching
from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import ModelSize
from latentwire_server.models.overrides import ModelSettings
from latentwire_server.models.source import (
    EMBEDDED_ID,
    MISSING_WATERMARK,
    ModelSource,
    embedded_source,
)
from latentwire_server.settings.files import SettingsError
from latentwire_server.settings.model_entry import ListedModel, id_of_source
from latentwire_server.settings.user_folders import user_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latentwire_server.models.protocol import DiffusionModel, ModelSpec
    from latentwire_server.settings.settings import Settings

_logger: Final = logging.getLogger(__name__)

_AUTO_BACKEND: Final = "auto"

ValueT = TypeVar("ValueT")


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
        SettingsError: one is a folder or file that is not there.
    """
    _check_folder(settings.embeddings_folder, field="embeddings_folder")
    if not settings.models:
        _check_there(settings.model, field="model")
        source = source_of(settings)
        _check_watermark(source, field="watermark")
        return (_to_load(source, settings, aliases=settings.model_aliases),)
    for index, listed in enumerate(settings.models):
        entry, owner = f"models[{index}]", f", of the model {listed.served_id!r}"
        _check_folder(listed.embeddings_folder, field=f"{entry}.embeddings_folder", owner=owner)
        for name in ("source", "refiner", "vae"):
            _check_there(getattr(listed, name), field=f"{entry}.{name}", owner=owner)
        _check_watermark(listed_source(listed, settings), field=f"{entry}.watermark")
    return tuple(
        _to_load(
            listed_source(listed, settings),
            settings,
            aliases=listed.aliases,
            own_limits=frozenset(listed.limits.model_dump(exclude_none=True)),
            preload=index == 0 if listed.preload is None else listed.preload,
        )
        for index, listed in enumerate(settings.models)
    )


def source_of(settings: Settings) -> ModelSource:
    """Returns where the one model comes from; its id is the last part of that, if none is given."""
    backend = _backend(settings.denoiser_backend, settings)
    if settings.model == EMBEDDED_ID:
        source = embedded_source(device=settings.device, dtype=settings.dtype, backend=backend)
        source = replace(source, id=settings.model_id or source.id)
        return _with_options(source, settings)
    source = ModelSource(
        id=settings.model_id or id_of_source(settings.model),
        source=settings.model,
        revision=settings.revision,
        variant=settings.variant,
        dtype=settings.dtype,
        device=settings.device,
        backend=backend,
        single_file_config=settings.single_file_config,
    )
    return _with_options(source, settings)


def listed_source(listed: ListedModel, settings: Settings) -> ModelSource:
    """Returns where a listed model comes from; what it leaves open is the server's."""
    dtype = listed.dtype or settings.dtype
    backend = _backend(listed.denoiser_backend or settings.denoiser_backend, settings)
    source = embedded_source(device=settings.device, dtype=dtype, backend=backend)
    if listed.source != EMBEDDED_ID:
        source = replace(
            source,
            source=listed.source,
            revision=listed.revision,
            variant=listed.variant,
            single_file_config=listed.single_file_config,
            refiner=listed.refiner,
            refiner_single_file_config=listed.refiner_single_file_config,
            vae=listed.vae,
        )
    if listed.high_noise_frac is not None:
        source = replace(source, high_noise_frac=listed.high_noise_frac)
    return replace(
        _with_options(source, settings, listed),
        id=listed.served_id,
        display_name=listed.display_name or "",
        aliases=listed.aliases,
        overrides=ModelSettings(defaults=listed.defaults, limits=listed.limits),
    )


def _check_folder(folder: Path | None, *, field: str, owner: str = "") -> None:
    if folder is not None and not folder.expanduser().is_dir():
        message = f"{field}={str(folder)!r}{owner}: there is no such folder"
        raise SettingsError(message)


def _check_watermark(source: ModelSource, *, field: str) -> None:
    if source.watermark and importlib.util.find_spec("imwatermark") is None:
        message = f"{field}=true: {MISSING_WATERMARK}"
        raise SettingsError(message)


def _with_options(
    source: ModelSource, settings: Settings, listed: ListedModel | None = None
) -> ModelSource:
    """Returns the source with what the model's entry says, and else the server's settings."""
    own = ListedModel(source=source.source) if listed is None else listed
    return replace(
        source,
        safety_checker=_first_given(own.safety_checker, settings.safety_checker),
        unchecked_previews=_first_given(own.unchecked_previews, settings.unchecked_previews),
        watermark=_first_given(own.watermark, settings.watermark),
        embeddings_folder=_first_given(own.embeddings_folder, settings.embeddings_folder),
        prompt_weighting=_first_given(own.prompt_weighting, settings.prompt_weighting),
        max_prompt_chunks=_first_given(own.max_prompt_chunks, settings.max_prompt_chunks),
        lora_folder=settings.lora_folder,
        loras=tuple(dict.fromkeys((*settings.loras, *own.loras))),
        denoiser_cache=user_cache() / "openvino",
    )


def _first_given(own: ValueT | None, servers: ValueT) -> ValueT:
    return servers if own is None else own


def _backend(wanted: str, settings: Settings) -> str:
    if wanted == _AUTO_BACKEND and settings.batching is Batching.REPRODUCIBLE:
        # A choice by measured speed may fall otherwise after the next start, and bytes with it.
        return "eager"
    return wanted


def _to_load(
    source: ModelSource,
    settings: Settings,
    *,
    aliases: tuple[str, ...],
    own_limits: frozenset[str] = frozenset(),
    preload: bool = True,
) -> ModelToLoad:
    may_do_without = source.backend == _AUTO_BACKEND
    return ModelToLoad(
        id=source.id,
        load=lambda report: _load(source, report),
        load_eager=partial(_load, replace(source, backend="eager")) if may_do_without else None,
        measure=partial(_measure, source),
        spec=partial(_spec, source),
        fetch_spec=partial(_spec, source, fetches=True),
        preload=preload,
        aliases=aliases,
        limits={
            name: limit
            for name, limit in settings.limit_overrides.items()
            if name not in own_limits
        },
    )


def _check_there(source: str | None, *, field: str, owner: str = "") -> None:
    if source in (None, EMBEDDED_ID) or not _looks_local(source):
        return
    if not Path(source).expanduser().exists():
        why = "there is no such folder or file, and it is no hub id"
        message = f"{field}={source!r}{owner}: {why}"
        raise SettingsError(message)


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _load(source: ModelSource, report: Report) -> DiffusionModel:
    with _told_apart(source):
        from latentwire_server.models.loading.loading import load_model  # noqa: PLC0415

        return load_model(source, report=report)


def _measure(source: ModelSource, report: Report) -> ModelSize:
    with _told_apart(source):
        from latentwire_server.models.files.hub import reporting_downloads  # noqa: PLC0415
        from latentwire_server.models.loading.loading import model_size  # noqa: PLC0415

        with reporting_downloads(report):
            return model_size(source)


def _spec(source: ModelSource, *, fetches: bool = False) -> ModelSpec | None:
    with _told_apart(source):
        from latentwire_server.models.loading.loading import read_spec  # noqa: PLC0415

        return read_spec(source, fetches=fetches)


def _for_callers(error: LoadError) -> str:
    """Returns the reason without what a library said: that stands in brackets, and names paths."""
    return error.reason if error.__cause__ is None else error.reason.partition(" (")[0]


@contextmanager
def _told_apart(source: ModelSource) -> Iterator[None]:
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
        _logger.debug("loading failed model=%s source=%s", source.id, source.source, exc_info=True)
        reason = f"it cannot be loaded ({type(error).__name__})"
        message = f"model {source.source!r}: cannot be loaded ({type(error).__name__}: {error})"
        raise ModelLoadError(message, reason=reason) from error
