"""The server's command line: one flag for each setting, errors of one line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from latentwire._process import version
from latentwire_server.settings.files import SettingsError
from latentwire_server.settings.settings import ENV_PREFIX, Settings, load_settings
from latentwire_server.settings.table import default_text, flag

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM: Final = "latentwire-server"
START_UP_ERROR: Final = 2
"""Exit code when the server cannot start."""


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Returns the settings of a command line, the environment and the configuration file.

    Ends the process with exit code 2 and one line on stderr when they cannot be used.
    """
    given = vars(_parser().parse_args(arguments))
    config_file: Path | None = given.pop("config", None)
    try:
        return load_settings(given, config_file=config_file)
    except SettingsError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Ends the process before it started: one line on stderr, exit code 2."""
    one_line = " ".join(message.split())
    sys.stderr.write(f"{PROGRAM}: {one_line}\n")
    raise SystemExit(START_UP_ERROR)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {PROGRAM} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Serves image generation over gRPC, every denoising step on the wire.",
        epilog=f"Each setting is also read from {ENV_PREFIX}<NAME> in the environment and from"
        " [server] in latentwire.toml; a flag beats the environment, which beats the file."
        f" Keys for callers are read from {ENV_PREFIX}API_KEYS or --api-keys-file.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version()}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file to read instead of latentwire.toml."
    )
    for name, info in Settings.model_fields.items():
        option = flag(name)
        if option is None:
            continue
        default = default_text(info)
        text = (info.description or "") + (f" (default: {default})" if default else "")
        if info.annotation is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            parser.add_argument(option, metavar="VALUE", help=text.replace("%", "%%"))
    return parser
