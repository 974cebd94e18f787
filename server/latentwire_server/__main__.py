"""``latentwire-server``: reads the settings, runs the server, and exits."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NoReturn

from latentwire._services.process import exit_at_once, fail
from latentwire_server.logging_setup import configure_logging
from latentwire_server.registry.chosen_models import chosen_models
from latentwire_server.settings.files import SettingsError, user_cache
from latentwire_server.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.registry.loadable_model import LoadableModel


def main() -> None:
    """Runs the server that the command line describes."""
    settings = Settings.parse()
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    try:
        models = chosen_models(settings)
    except SettingsError as error:
        fail(Settings.program, str(error))
    run(settings, models)


def run(settings: Settings, models: Sequence[LoadableModel]) -> NoReturn:
    """Serves ``models`` until a signal stops the server, and ends the process."""
    # Torch reads this from the environment alone. Its default is a temporary folder, which may be
    # empty after a restart.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    # Torch takes seconds to import: --help and wrong settings are answered before.
    from latentwire_server.app import serve  # noqa: PLC0415

    try:
        exit_at_once(asyncio.run(serve(settings, models)))
    except SettingsError as error:
        fail(Settings.program, str(error))


if __name__ == "__main__":
    main()
