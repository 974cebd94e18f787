"""The bridge's settings: read once, frozen, handed down in parts.

A flag beats ``LATENTWIRE_BRIDGE_*`` in the environment, which beats ``[bridge]`` of
``latentwire.toml``, which beats the default. Nothing else in the bridge reads the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo  # noqa: TC002 - pydantic resolves annotations at run time
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from latentwire._process import is_loopback
from latentwire_bridge.edge.browsers import ANY, BrowserPolicy

ENV_PREFIX: Final = "LATENTWIRE_BRIDGE_"
CONFIG_FILE: Final = Path("latentwire.toml")
OPENAI_MODELS: Final = (
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2-2026-04-21",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-sunburst-2026-09-08",
    "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.6-sunburst",
    "gpt-image-2.6-flare",
    "chatgpt-image-latest",
)
"""Names that programs written for OpenAI ask for."""

Names = Annotated[tuple[str, ...], NoDecode]


class SettingsError(Exception):
    """The settings cannot be used; the text is one line for the operator."""


class Settings(BaseSettings):
    """The bridge's settings."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        toml_file=None,
        hide_input_in_errors=True,
    )
    config_file: ClassVar[Path | None] = None

    # Listening
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(9225, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    port_file: Path | None = Field(
        None, description="File that receives the chosen port once the bridge listens."
    )
    public_url: str | None = Field(
        None, description="What image URLs begin with; without it, what the caller called."
    )

    # Server
    server: str = Field(
        "localhost:50051",
        min_length=1,
        description="The gRPC server; with 'https://' before it, TLS is used.",
    )
    model_aliases: Names = Field(
        OPENAI_MODELS,
        description="Names that stand for the default model, or NAME=MODEL for another one.",
    )

    # Browsers
    cors_origins: Names = Field(
        (),
        description="Origins whose web pages may call, such as https://app.example; '*' for all.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Host names under which callers may reach a bridge on a loopback address,"
        " besides localhost; '*' for all.",
    )

    # Limits
    max_body_bytes: int = Field(
        1_048_576, ge=1_024, le=2**31 - 1, description="Largest request body without pictures."
    )
    max_upload_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1_024,
        le=2**31 - 1,
        description="Largest request body with pictures.",
    )
    body_timeout_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="How long a request body may take to arrive."
    )
    keep_alive_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a stream may be silent before it gets a comment.",
    )
    send_timeout_s: float = Field(
        120.0,
        gt=0,
        allow_inf_nan=False,
        description="How long the reader of a stream may read nothing.",
    )
    generation_timeout_s: float = Field(
        3_600.0, gt=0, allow_inf_nan=False, description="How long a generation may take in all."
    )
    grace_s: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="How long requests may go on after SIGTERM."
    )

    # Files behind image URLs
    files_folder: Path | None = Field(
        None, description="Where the images' folder is made; without it, the system's for such."
    )
    max_files: int = Field(1_000, ge=1, description="Most images kept for their URLs.")
    max_files_bytes: int = Field(
        1_073_741_824, ge=67_108_864, description="Most bytes of images kept for their URLs."
    )
    files_ttl_s: float = Field(
        3_600.0, gt=0, allow_inf_nan=False, description="How long an image URL works."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe lines that are logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: flags, environment, ``latentwire.toml``."""
        return (init_settings, env_settings, _ConfigurationFile(settings_cls, cls.config_file))

    @field_validator("model_aliases", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            message = "needed: an absolute URL such as https://images.example"
            raise ValueError(message)
        return value.rstrip("/")

    @property
    def aliases(self) -> dict[str, str]:
        """The further names of models, and what they stand for; empty is the default model."""
        pairs = (alias.partition("=") for alias in self.model_aliases)
        return {name.strip(): model.strip() for name, _, model in pairs}

    @property
    def browsers(self) -> BrowserPolicy:
        """Which web pages may call."""
        hosts = {host.lower() for host in self.allowed_hosts}
        if self.public_url is not None:
            hosts.add(urlsplit(self.public_url).hostname or "")
        if not (is_loopback(self.host) or self.allowed_hosts):
            # Whoever opens the bridge to a network knows its names there; we do not.
            hosts.add(ANY)
        return BrowserPolicy(
            cors_origins=frozenset(origin.lower().rstrip("/") for origin in self.cors_origins),
            allowed_hosts=frozenset(hosts),
        )

    @property
    def images(self) -> ImageSettings:
        """The images' part."""
        return ImageSettings(
            public_url=self.public_url,
            body_timeout_s=self.body_timeout_s,
            max_upload_bytes=self.max_upload_bytes,
            keep_alive_s=self.keep_alive_s,
            send_timeout_s=self.send_timeout_s,
            generation_timeout_s=self.generation_timeout_s,
        )


class _ConfigurationFile(TomlConfigSettingsSource):
    """``[bridge]``, where there is a file and such a table in it."""

    def __call__(self) -> dict[str, object]:
        """Returns the fields that the file sets.

        Raises:
            ValueError: the bridge's part is no table.
        """
        own = super().__call__().get("bridge", {})
        if not isinstance(own, dict):
            message = f"bridge={own!r}: needed: a table, [bridge]"
            raise ValueError(message)  # noqa: TRY004 - a setting that is wrong
        return own


def load_settings(flags: dict[str, object], *, config_file: Path | None = None) -> Settings:
    """Reads the settings from flags, environment and file.

    Args:
        flags: What the command line gave, by field.
        config_file: A TOML file that must exist; None: ``latentwire.toml`` if it does.

    Raises:
        SettingsError: something is wrong; all of it is named in one line.
    """
    if config_file is not None and not config_file.is_file():
        message = f"config={str(config_file)!r}: no such file"
        raise SettingsError(message)
    path = config_file or CONFIG_FILE
    located: type[Settings] = type("Settings", (Settings,), {"config_file": path})
    try:
        return located(**flags)  # type: ignore[arg-type] # pydantic checks them, that is the point
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(error, flags))) from None
    except ValueError as error:  # tomllib.TOMLDecodeError, a [bridge] that is no table
        message = f"{path}: {error}"
        raise SettingsError(message) from None


def _describe(error: ValidationError, flags: dict[str, object]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        field = str(problem["loc"][0])
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field}: no such setting")
        else:
            lines.append(f"{field}={problem.get('input', flags.get(field))!r}: {reason}")
    return lines


def flag(field: str) -> str:
    """Returns a setting's flag."""
    return "--" + field.replace("_", "-")


def default_text(info: FieldInfo) -> str:
    """Returns a setting's default for people."""
    value = info.default
    if value is None or value == ():
        return ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def markdown_table() -> str:
    """Returns every setting as rows of a Markdown table."""
    rows = ["| flag | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        default = "OpenAI's models" if name == "model_aliases" else default_text(info)
        cells = (
            f"`{flag(name)}`",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{default}`" if default else "",
            info.description or "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """The images' part of the settings."""

    public_url: str | None
    """What callers' URLs begin with; None: as the caller wrote it."""
    body_timeout_s: float
    max_upload_bytes: int
    keep_alive_s: float
    send_timeout_s: float
    generation_timeout_s: float
