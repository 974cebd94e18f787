"""``latentwire-bridge``: reads the settings, runs the bridge, gives the exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from latentwire_bridge.app import serve
from latentwire_bridge.command_line import fail, parse
from latentwire_bridge.settings import SettingsError

if TYPE_CHECKING:
    from latentwire_bridge.settings import Settings


def main() -> None:
    """Runs the bridge of the command line."""
    settings = parse()
    _configure_logging(settings)
    try:
        asyncio.run(serve(settings, exit_at_once=_exit))
    except SettingsError as error:
        fail(str(error))


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
