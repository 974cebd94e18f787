"""The format of log lines: ``key=value`` for people, JSON lines for machines.

Configured once, by ``__main__``. The server logs through the standard library with templates such
as ``"ready address=%s model=%s"``; the JSON lines carry the same keys with their values.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, Literal

_FIELD: Final = re.compile(r"\b(\w+)=%(?:\.\d+)?[a-z]")
_HUMAN: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and the fields of the template."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        template = str(record.msg)
        names = _FIELD.findall(template)
        if names and isinstance(record.args, tuple) and len(names) == len(record.args):
            line["event"] = template.partition(f"{names[0]}=")[0].strip()
            line.update(zip(names, map(_rounded, record.args), strict=True))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(*, log_format: Literal["human", "json"], log_level: str) -> None:
    """Sends all log lines to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else logging.Formatter(_HUMAN, "%H:%M:%S")
    )
    # Libraries log only what is wrong.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("latentwire_server").setLevel(log_level.upper())


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
