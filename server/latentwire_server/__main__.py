"""``latentwire-server``: reads the settings, runs the server, gives the exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from latentwire_server.logging_setup import configure_logging
from latentwire_server.registry.chosen_models import chosen_models
from latentwire_server.settings.command_line import fail, parse
from latentwire_server.settings.files import SettingsError
from latentwire_server.settings.user_folders import user_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.registry.loadable_model import LoadableModel
    from latentwire_server.settings.settings import Settings


def main() -> None:
    """Runs the server of the command line."""
    settings = parse()
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    try:
        models = chosen_models(settings)
    except SettingsError as error:
        fail(str(error))
    run(settings, models)


def run(settings: Settings, models: Sequence[LoadableModel]) -> NoReturn:
    """Serves ``models`` until told to stop, and ends the process."""
    # Torch reads this from the environment alone. Its default is a temporary folder, which may be
    # empty after a restart.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    # Torch takes seconds to import: --help and what is set wrong are answered before.
    from latentwire_server.app import serve  # noqa: PLC0415

    try:
        _exit(asyncio.run(serve(settings, models, exit_at_once=_exit)))
    except SettingsError as error:
        fail(str(error))


def _exit(code: int) -> NoReturn:
    """Ends the process at once.

    Threads of torch and of the loading may still be inside C++, where the interpreter's orderly
    end would abort them, and with them the exit code.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
