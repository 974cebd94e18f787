"""How a command ends: the exit status, and the error lines for people."""

from __future__ import annotations

from enum import IntEnum

from latentwire import errors
from latentwire._cli.formatting import duration


class UsageError(Exception):
    """The command line is wrong in a way that its parser cannot detect. The text is for people."""


class ExitCode(IntEnum):
    """The exit statuses of every command."""

    OK = 0
    SERVER_FAILED = 1
    """The server failed, or its response is corrupt; trying again may help."""
    REFUSED = 2
    """The command line or the request is wrong; trying again will not help."""
    UNAVAILABLE = 3
    """The server is unreachable or not ready."""
    BUSY = 4
    """The queue is full, or the time-out passed or could not be met."""
    WITHHELD = 5
    """The server's safety filter withheld every image; another seed or prompt may help."""
    INTERRUPTED = 130
    """Ctrl-C; the generation was cancelled."""


def exit_code_for(error: errors.LatentwireError) -> ExitCode:
    match error:
        case (
            errors.InvalidRequestError()
            | errors.NotFoundError()
            | errors.AuthenticationError()
            | errors.OutOfMemoryError()
        ):
            return ExitCode.REFUSED
        case errors.UnavailableError():
            return ExitCode.UNAVAILABLE
        case errors.QueueFullError() | errors.DeadlineError():
            return ExitCode.BUSY
        case _:
            return ExitCode.SERVER_FAILED


def error_lines(error: errors.LatentwireError) -> str:
    lines = [f"latentwire: {error}"]
    if error.retry_after_s is not None:
        lines.append(f"try again in {duration(error.retry_after_s)}")
    if isinstance(error, errors.InternalServerError) and error.error_id not in error.message:
        lines.append(f"the server's log has details under {error.error_id}")
    return "\n".join(lines) + "\n"
