"""A model that can be loaded: what the registry asks of it, and the one that an entry describes."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from latentwire_server.models.errors import LoadError
from latentwire_server.settings.files import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from latentwire_server.models.files.hub import Report
    from latentwire_server.models.info import ModelSize
    from latentwire_server.models.loading.model_files import ModelFiles
    from latentwire_server.models.model_options import ModelEntry
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec

_logger: Final = logging.getLogger(__name__)


class ModelLoadError(SettingsError):
    """A model cannot be loaded: one line for the operator, and a reason for callers."""

    def __init__(self, message: str, *, reason: str) -> None:
        """Takes both; the reason names no path and quotes no library."""
        super().__init__(message)
        self.reason = reason


class LoadableModel(Protocol):
    """A model that is served. Its methods block, and are called in loading threads.

    ``spec`` may be called at any time, ``measure`` and ``load`` one at a time.
    """

    @property
    def id(self) -> str:
        """The name to ask for it by."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its further names."""

    @property
    def limits(self) -> Mapping[str, int]:
        """The server's limits that replace its own, by field of ``ModelLimits``."""

    @property
    def preload(self) -> bool:
        """Whether it is loaded before the server is ready."""

    @property
    def may_run_uncompiled(self) -> bool:
        """Whether its denoiser may run uncompiled where its programs take too much memory."""

    def spec(self, *, fetch: bool = False) -> ModelSpec | None:
        """Returns its spec, read from its configuration; None if that takes the weights.

        Args:
            fetch: Whether its configuration is downloaded if it is not on this machine.

        Raises:
            ModelLoadError: It is not to be trusted, or of a kind that is not served.
        """

    def measure(self, report: Report) -> ModelSize:
        """Returns the memory that it will take; downloads what is not on this machine.

        Raises:
            ModelLoadError: It is not available, or not to be trusted.
        """

    def load(self, report: Report, *, compiles: bool = True) -> DiffusionModel:
        """Loads it.

        Args:
            report: Is called with the loaded bytes, and those of all.
            compiles: Whether its denoiser may be compiled.

        Raises:
            ModelLoadError: It cannot be loaded.
        """


class ConfiguredModel:
    """The model of an entry of the settings."""

    def __init__(
        self,
        entry: ModelEntry,
        *,
        limits: Mapping[str, int],
        preload: bool,
        denoiser_cache: Path | None = None,
    ) -> None:
        self._entry = entry
        self.id: Final = entry.id
        self.aliases: Final = entry.aliases
        self.limits: Final = limits
        self.preload: Final = preload
        self.may_run_uncompiled: Final = entry.denoiser_backend == "auto"
        self._denoiser_cache = denoiser_cache
        self._measured: ModelFiles | None = None

    # Diffusers and transformers take seconds to import: the server listens meanwhile.

    def spec(self, *, fetch: bool = False) -> ModelSpec | None:
        """Implements ``LoadableModel.spec``."""
        with self._translated_errors():
            from latentwire_server.models.files.hub import Fetch  # noqa: PLC0415
            from latentwire_server.models.loading.model_files import read_spec  # noqa: PLC0415

            return read_spec(self._entry, fetch=Fetch.CONFIGURATION if fetch else Fetch.NOTHING)

    def measure(self, report: Report) -> ModelSize:
        """Implements ``LoadableModel.measure``; the next load uses the files found here."""
        with self._translated_errors():
            from latentwire_server.models.loading.model_files import ModelFiles  # noqa: PLC0415

            self._measured = ModelFiles.open(self._entry, report=report)
            return self._measured.size()

    def load(self, report: Report, *, compiles: bool = True) -> DiffusionModel:
        """Implements ``LoadableModel.load``."""
        with self._translated_errors():
            from latentwire_server.models.loading.model_files import ModelFiles  # noqa: PLC0415

            files = self._measured or ModelFiles.open(self._entry)
            self._measured = None
            return files.load(report=report, compiles=compiles, denoiser_cache=self._denoiser_cache)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translates load errors: full text for the log, a safe reason for callers."""
        from diffusers.utils import logging as diffusers_logging  # noqa: PLC0415
        from transformers.utils import logging as transformers_logging  # noqa: PLC0415

        from latentwire_server.models.errors import BackendError, PrecisionError  # noqa: PLC0415

        for library in (diffusers_logging, transformers_logging):
            # Both write to stderr without the log, between its lines.
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        except LoadError as error:
            # A library's own text follows in brackets, and may name paths.
            reason = error.reason if error.__cause__ is None else error.reason.partition(" (")[0]
            raise ModelLoadError(str(error), reason=reason) from error
        except (BackendError, PrecisionError) as error:
            raise ModelLoadError(str(error), reason=str(error)) from error
        except Exception as error:
            # The libraries fail in many ways; the operator gets one line, and the rest on demand.
            source = self._entry.source
            _logger.debug("loading failed model=%s source=%s", self.id, source, exc_info=True)
            reason = f"it cannot be loaded ({type(error).__name__})"
            message = f"model {source!r}: cannot be loaded ({type(error).__name__}: {error})"
            raise ModelLoadError(message, reason=reason) from error
