"""Writes the reference pages of settings and command lines, from the code that reads them.

``python -m tools.settings_tables`` writes ``docs/reference``; ``make format`` calls it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentwire._cli.arguments import build_parser
from latentwire._services.process import version
from latentwire._services.settings import default_text, flag
from latentwire_bridge.settings import Settings as BridgeSettings
from latentwire_server.models.model_options import ModelOptions
from latentwire_server.settings.settings import Settings as ServerSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from latentwire._services.settings import ServiceSettings

REFERENCE: Final = Path(__file__).parent.parent / "docs/reference"
_GENERATED: Final = "<!-- Written by `make format` from the code. -->"
_SETTINGS: Final = f"""\
# Settings

{_GENERATED}

A flag beats the environment, which beats `latentwire.toml`, which beats the default. The file is
read from the folder where a service starts; `--config FILE` names another one. A setting has the
same name everywhere: `--max-rows 8` is `LATENTWIRE_MAX_ROWS=8` and, in the file,

```toml
[server]
max_rows = 8

[bridge]
max_files = 100
```

`[[models]]` beside these tables lists several models: see [models](../models.md). Lists are
separated by commas in flags and in the environment, and are lists in the file. A setting that is
`true` or `false` has two flags, such as `--watermark` and `--no-watermark`.
"""
_OPTIONS: Final = """\
### Options of models

They hold for every model; each is also a key of an entry of `[[models]]`, which beats it there
(`loras` add up, and `device` is the server's alone).
"""
_COMMANDS: Final = f"""\
# Command lines

{_GENERATED}
"""


def settings_page() -> str:
    """Returns the page with every setting of both services."""
    return "\n".join(
        [
            _SETTINGS,
            f"## {ServerSettings.program}\n",
            _settings_table(ServerSettings, without=ModelOptions.model_fields),
            _OPTIONS,
            _settings_table(ServerSettings, without=_own_fields()),
            f"## {BridgeSettings.program}\n",
            _settings_table(BridgeSettings),
        ]
    )


def _own_fields() -> set[str]:
    return ServerSettings.model_fields.keys() - ModelOptions.model_fields.keys()


def _settings_table(settings: type[ServiceSettings], *, without: Collection[str] = ()) -> str:
    rows = (
        (
            _code(flag(name, info) or ""),
            _code(settings.environment_name(name)),
            _code(name),
            _code(default_text(info).replace(",", ", ")),
            info.description or "",
        )
        for name, info in settings.model_fields.items()
        if name not in without
    )
    return _table(("flag", "environment", f"`[{settings.table}]`", "default", "meaning"), rows)


def command_line_page() -> str:
    """Returns the page with the commands of ``latentwire`` and the programs of both services."""
    parts = [_COMMANDS, *_command_sections(build_parser(version=version()))]
    for settings in (ServerSettings, BridgeSettings):
        program = settings.program
        parts.append(
            f"## {program}\n\n{settings.summary} It takes `--config FILE`, `--version`, `--help`"
            f" and a flag for [each setting](settings.md#{program}).\n"
        )
    return "\n".join(parts)


def _command_sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = {}
    for action in parser._actions:  # noqa: SLF001 - argparse shows them in its help text alone
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            commands = action.choices
    yield f"## {parser.prog}\n\n{parser.description}\n\n```text\n{parser.epilog}```\n"
    for command in commands.values():
        yield f"### {command.prog}\n\n{command.description}\n"
        for group in command._action_groups:  # noqa: SLF001
            actions = [action for action in group._group_actions if action.dest != "help"]  # noqa: SLF001
            rows = [(_code(_usage(action)), action.help or "") for action in actions]
            if rows:
                description = f"{group.description}\n\n" if group.description else ""
                yield f"{description}{_table((group.title or '', 'meaning'), rows)}"


def _usage(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = "|".join(action.choices) if action.choices else action.dest.upper()
    value = action.metavar if isinstance(action.metavar, str) else value
    return f"{names} {value}".strip()


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, tuple("---" for _ in head), *rows)
    # A bar would end the cell.
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    (REFERENCE / "settings.md").write_text(settings_page())
    (REFERENCE / "cli.md").write_text(command_line_page())
