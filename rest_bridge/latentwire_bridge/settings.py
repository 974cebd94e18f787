"""The bridge's settings: read once, frozen, handed down in parts.

``latentwire._service_settings`` says where they come from. Nothing else in the bridge reads the
environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - pydantic resolves annotations at run time
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from latentwire._service_settings import ANY_CASE, COMMA_SEPARATED, ServiceSettings

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

Names = Annotated[tuple[str, ...], NoDecode, COMMA_SEPARATED]


class Settings(ServiceSettings):
    """The bridge's settings."""

    model_config = SettingsConfigDict(env_prefix="LATENTWIRE_BRIDGE_")
    program: ClassVar = "latentwire-bridge"
    summary: ClassVar = "Serves OpenAI's Images API in front of a Latentwire server."
    table: ClassVar = "bridge"

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

    log_level: Annotated[Literal["debug", "info", "warning", "error"], ANY_CASE] = Field(
        "info", description="The least severe lines that are logged."
    )

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
