"""``latentwire-bridge``: reads the settings, runs the bridge, and exits."""

from __future__ import annotations

import asyncio
import logging
import sys

from latentwire._services.process import fail
from latentwire._services.settings import SettingsError
from latentwire_bridge.app import serve
from latentwire_bridge.settings import Settings


def main() -> None:
    """Runs the bridge that the command line describes."""
    settings = Settings.parse()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("latentwire_bridge").setLevel(settings.log_level.upper())
    try:
        asyncio.run(serve(settings))
    except SettingsError as error:
        fail(Settings.program, str(error))


if __name__ == "__main__":
    main()
