"""What ``latentwire serve`` shows until both services are ready. Event loop only.

The services write their logs to the same standard error, directly. So a terminal gets a status
line that leaves the cursor at its start, where the next log line overwrites it; anything else gets
one line per phase, and from time to time a line of progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from latentwire._async_client import AsyncClient
from latentwire._cli.formatting import duration
from latentwire.errors import LatentwireError

if TYPE_CHECKING:
    from latentwire._cli.live import StatusLine

_EMBEDDED_MODEL: Final = "models/embedded"
# Two CPU cores took 46 s with little other work and 70 to 90 s when busy, most of it for imports
# and compilation.
_EMBEDDED_USUALLY: Final = "20 to 60 s"
_OTHERS_USUALLY: Final = "seconds for each GB on disk, minutes for a download"

_REDRAW_S: Final = 0.1
_PROGRESS_S: Final = 10.0
_REMINDER_S: Final = 60.0
_POLL_INTERVAL_S: Final = 0.5


class StartUpDisplay:
    """Shows the current phase, how long it has taken so far, and how long it usually takes."""

    def __init__(self) -> None:
        self._line = _status_line()
        self._phase = ""
        self._usually = ""
        self._began_at = 0.0
        self._progress = ""
        self._written_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._refreshing = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._line is not None:
            self._line.erase()

    def begin(self, phase: str, *, usually: str) -> None:
        """Shows the next phase, such as ``"Starting the server"``."""
        self._phase, self._usually, self._progress = phase, usually, ""
        self._began_at = self._written_at = time.monotonic()
        if self._line is None:
            say(f"{phase}, usually {usually}.")

    async def follow_load(self, server: str) -> None:
        """Shows which model the server is loading, with progress if the server permits that.

        A server with API keys requires one in ``LATENTWIRE_API_KEY`` for the model, and an admin
        key for the progress.
        """
        try:
            async with AsyncClient(server, api_key=os.environ.get("LATENTWIRE_API_KEY")) as client:
                model, *_ = await client.models()
                while model.state == "unloaded":
                    await asyncio.sleep(_POLL_INTERVAL_S)
                    model, *_ = await client.models()
                if model.name == _EMBEDDED_MODEL:
                    self.begin("Loading the embedded model", usually=_EMBEDDED_USUALLY)
                else:
                    self.begin(f"Loading {model.name}", usually=_OTHERS_USUALLY)
                if model.state == "loading":
                    with contextlib.suppress(LatentwireError):
                        # Joins the load that the server has begun.
                        await client.load_model(model.name, on_progress=self._set_progress)
        except (LatentwireError, ValueError):
            self.begin("Loading the model", usually=_OTHERS_USUALLY)

    def _set_progress(self, loaded_bytes: int, total_bytes: int) -> None:
        if total_bytes:
            # Compilation and the batch-size probe come after the last byte.
            warming_up = ", warming up" if loaded_bytes == total_bytes else ""
            self._progress = f", {loaded_bytes >> 20} of {total_bytes >> 20} MiB{warming_up}"

    async def _refresh(self) -> None:
        shown = ""
        while True:
            await asyncio.sleep(_REDRAW_S)
            now = time.monotonic()
            line = f"{self._phase}: {duration(now - self._began_at)}{self._progress}"
            if self._line is not None:
                self._line.draw(f"{line} (usually {self._usually})")
            elif now - self._written_at >= (
                _PROGRESS_S if self._progress != shown else _REMINDER_S
            ):
                self._written_at, shown = now, self._progress
                say(line)


def say(text: str) -> None:
    """Writes a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _status_line() -> StatusLine | None:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    # Importing rich takes 0.1 s.
    from latentwire._cli.live import StatusLine  # noqa: PLC0415

    return StatusLine()
