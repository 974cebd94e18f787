"""What the process's exit status says."""

from __future__ import annotations

from enum import IntEnum

from latentwire import errors


class ExitCode(IntEnum):
    """The exit statuses of every command."""

    OK = 0
    SERVER_FAILED = 1
    """The server failed, or what it sent is corrupt; trying again may help."""
    REFUSED = 2
    """The command line or the request is wrong; trying again will not help."""
    UNAVAILABLE = 3
    """The server cannot be reached or is not ready."""
    BUSY = 4
    """The queue is full, or the time-out passed or could not be met."""
    WITHHELD = 5
    """The server's safety filter withheld every image; another seed or prompt may help."""
    INTERRUPTED = 130
    """Ctrl-C; the generation was cancelled."""


def exit_code_for(error: errors.LatentwireError) -> ExitCode:
    """Returns the exit status for an error."""
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
