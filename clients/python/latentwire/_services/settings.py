"""How the server and the bridge read their settings.

A flag beats the environment, which beats the service's table in ``latentwire.toml``, which beats
the default. For these two services only: pydantic-settings comes with their extras, not with the
client.
"""

from __future__ import annotations

import argparse
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Final,
    Literal,
    NoReturn,
    Self,
    get_args,
    get_origin,
)

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    CLI_SUPPRESS,
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
)

from latentwire._services.process import fail, version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

CONFIG_FILE: Final = Path("latentwire.toml")
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A time span."""
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(Exception):
    """The settings cannot be used; the text is one line for the operator."""


class ServiceSettings(BaseSettings):
    """The settings of one service."""

    model_config = SettingsConfigDict(
        # Flags and the environment are text.
        strict=False,
        enable_decoding=False,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )
    program: ClassVar[str]
    summary: ClassVar[str]
    """What the program does, for ``--help``."""
    table: ClassVar[str]
    """The service's table in the configuration file."""

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Self:
        """Returns the settings of a command line, the environment and the configuration file.

        Ends the process with exit code 2 and one line on stderr if they cannot be used.
        """
        source = command_line(cls)
        given = vars(source.root_parser.parse_args(arguments))
        config_file: Path | None = given.pop("config", None)
        try:
            cls._refuse_without_flag(given)
            return cls.load(source(parsed_args=given)(), config_file=config_file)
        except SettingsError as error:
            fail(cls.program, str(error))

    @classmethod
    def load(cls, flags: Mapping[str, object], *, config_file: Path | None = None) -> Self:
        """Returns the settings of flags, the environment and the configuration file.

        Args:
            flags: The values of the command line, by field.
            config_file: A TOML file that must exist; None: ``latentwire.toml`` if it exists.

        Raises:
            SettingsError: Something is wrong; all of it is named in one line.
        """
        path = config_file or CONFIG_FILE
        is_there = config_file is not None or CONFIG_FILE.exists()
        content = read_text("config", path) if is_there else ""
        try:
            from_file = cls.from_tables(tomllib.loads(content))
            return cls(**{**from_file, **EnvSettingsSource(cls)(), **flags})
        except ValidationError as error:
            raise SettingsError("; ".join(cls._describe(error))) from None
        except ValueError as error:  # tomllib.TOMLDecodeError, or a table of the wrong form
            message = f"{path}: {error}"
            raise SettingsError(message) from None

    @classmethod
    def from_tables(cls, tables: Mapping[str, object]) -> dict[str, object]:
        """Returns the fields that a configuration file sets.

        Raises:
            ValueError: The service's part is no table.
        """
        own = tables.get(cls.table, {})
        if not isinstance(own, dict):
            message = f"{cls.table}={own!r}: needed: a table, [{cls.table}]"
            raise ValueError(message)  # noqa: TRY004 - a setting that is wrong
        for name in own:
            # BaseSettings has parameters of its own, such as _env_file.
            if name.startswith("_"):
                message = f"{name}: no such setting"
                raise ValueError(message)
        return own

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: object, field: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        annotation = cls.model_fields[field.field_name or ""].annotation
        if get_origin(annotation) is tuple:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        is_choice = get_origin(annotation) is Literal or (
            isinstance(annotation, type) and issubclass(annotation, StrEnum)
        )
        return value.lower() if is_choice else value

    @classmethod
    def environment_name(cls, field: str) -> str:
        """Returns the environment variable of a setting."""
        return f"{cls.model_config['env_prefix']}{field}".upper()

    @classmethod
    def _refuse_without_flag(cls, given: Mapping[str, object]) -> None:
        # Before 2.16, pydantic-settings adds flags such as --models.source.
        for name in (dest.partition(".")[0] for dest in given):
            info = cls.model_fields[name]
            if flag(name, info) is not None:
                continue
            places = [cls.environment_name(name), str(CONFIG_FILE)]
            if f"{name}_file" in cls.model_fields:
                places.insert(1, f"{_option(name)}-file")
            why = ", which every user of this machine can read" if _is_secret(info) else ""
            use = f"{', '.join(places[:-1])} or {places[-1]}"
            message = f"{_option(name)}: not taken from the command line{why}; use {use}"
            raise SettingsError(message)

    @classmethod
    def _describe(cls, error: ValidationError) -> Iterator[str]:
        """Yields what is wrong with each field, and its value unless that is a secret."""
        for problem in error.errors(include_url=False, include_context=False):
            # "models[1].dtype" and the like.
            parts = (
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]
            )
            place = "".join(parts).removeprefix(".")
            reason = problem["msg"].removeprefix("Value error, ")
            if not place:
                yield reason
            elif problem["type"] == "extra_forbidden":
                yield f"{place}: no such setting"
            elif _is_secret(cls.model_fields[str(problem["loc"][0])]):
                yield f"{place}: {reason}"
            else:
                yield f"{place}={problem['input']!r}: {reason}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(self.prog, f"{message} (see {self.prog} --help)")


def command_line(settings: type[ServiceSettings]) -> CliSettingsSource[_Parser]:
    """Returns a service's command line: a flag for each setting, ``--config``, ``--version``."""
    fields = settings.model_fields
    hidden = [
        settings.environment_name(name) for name in fields if flag(name, fields[name]) is None
    ]
    parser = _Parser(
        prog=settings.program,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description=settings.summary,
        epilog=f"Each setting is also read from {settings.environment_name('<name>')} in the"
        f" environment and from [{settings.table}] in {CONFIG_FILE}; a flag beats the environment,"
        " which beats the file." + (f" Without a flag: {', '.join(hidden)}." if hidden else ""),
    )
    parser.add_argument("--version", action="version", version=f"{settings.program} {version()}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file to read instead of {CONFIG_FILE}."
    )
    source: CliSettingsSource[_Parser] = CliSettingsSource(
        settings,
        root_parser=parser,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        # "null" is a value like any other, and no argument can contain this one.
        cli_parse_none_str="\0",
    )
    for action in parser._actions:  # noqa: SLF001 - argparse lists them nowhere else
        info = fields.get(action.dest)
        if info is None or flag(action.dest, info) is None:
            continue
        # pydantic-settings shows Python's values: "None", "DYNAMIC", a tuple.
        default = default_text(info)
        text = (info.description or "") + (f" (default: {default})" if default else "")
        action.help = text.replace("%", "%%")
        if isinstance(action.metavar, str):
            is_list = get_origin(info.annotation) is tuple
            action.metavar = "list" if is_list else action.metavar.lower()
    return source


def flag(name: str, info: FieldInfo) -> str | None:
    """Returns the flag of a setting; None if the command line does not take it."""
    return None if CLI_SUPPRESS in info.metadata else _option(name)


def default_text(info: FieldInfo) -> str:
    """Returns the default of a setting for people; empty if there is none."""
    value = info.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def read_file(field: str, path: Path) -> bytes:
    """Returns the bytes of a file that a setting names.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{field}={str(path)!r}: {error.strerror or 'cannot be read'}"
        raise SettingsError(message) from None


def read_text(field: str, path: Path) -> str:
    """Returns the text of a file that a setting names.

    Raises:
        SettingsError: The file cannot be read or is not UTF-8.
    """
    try:
        # Some editors begin a file with a byte order mark.
        return read_file(field, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        message = f"{field}={str(path)!r}: is not UTF-8"
        raise SettingsError(message) from None


def write_port_file(path: Path, port: int) -> None:
    """Writes the port to ``port_file`` atomically, so that a reader never sees half of it.

    Raises:
        SettingsError: The file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(f"{port}\n")
        partial.replace(path)
    except OSError as error:
        message = f"port_file={str(path)!r}: {error.strerror or 'cannot be written'}"
        raise SettingsError(message) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_secret(info: FieldInfo) -> bool:
    return SecretStr in get_args(info.annotation)
