"""What is wrong with a command line that its parser cannot see."""

from __future__ import annotations


class UsageError(Exception):
    """The command cannot be carried out as given; the text is for people."""
