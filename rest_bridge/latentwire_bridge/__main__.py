"""``latentwire-bridge``: reads the settings, runs the bridge, and exits."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import NoReturn

from latentwire._services.process import fail
from latentwire._services.settings import SettingsError
from latentwire_bridge.app import serve
from latentwire_bridge.settings import Settings


def main() -> None:
    """Runs the bridge that the command line describes."""
    settings = Settings.parse()
    _configure_logging(settings)
    try:
        asyncio.run(serve(settings, exit_at_once=_exit))
    except SettingsError as error:
        fail(Settings.program, str(error))


def _configure_logging(settings: Settings) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("latentwire_bridge").setLevel(settings.log_level.upper())


def _exit(code: int) -> NoReturn:
    """Ends the process at once, whatever is still running."""
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
