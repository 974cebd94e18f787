"""The command-line interface, ``latentwire``: one file per command, ``main`` picks one."""

from latentwire._cli.main import main

__all__ = ["main"]
