"""The command-line interface, ``latentwire``: ``main`` runs one of the commands beside it."""

from latentwire._cli.main import main

__all__ = ["main"]
