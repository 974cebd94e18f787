"""The bridge's settings: read once, frozen.

``latentwire._services.settings`` reads them from flags, environment and file. Nothing else in the
bridge reads the environment.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic resolves annotations at run time
from typing import ClassVar, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from latentwire._services.settings import LogLevel, Seconds, ServiceSettings

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
"""The model names that programs written for OpenAI use."""


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
        None, description="Start of image URLs; by default the address that the caller used."
    )

    # Server
    server: str = Field(
        "localhost:50051",
        min_length=1,
        description="Address of the gRPC server; 'https://' before it turns TLS on.",
    )
    model_aliases: tuple[str, ...] = Field(
        OPENAI_MODELS, description="Names for the default model, or NAME=MODEL for another one."
    )

    # Browsers
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose web pages may call, such as https://app.example; '*' for all.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Host names besides localhost under which a bridge on a loopback address may be"
        " reached; '*' for all.",
    )

    # Limits
    max_body_bytes: int = Field(
        1_048_576, ge=1_024, le=2**31 - 1, description="Largest request body without images."
    )
    max_upload_bytes: int = Field(
        64 * 1024 * 1024, ge=1_024, le=2**31 - 1, description="Largest request body with images."
    )
    body_timeout_s: Seconds = Field(30.0, description="How long a request body may take to arrive.")
    keep_alive_s: Seconds = Field(
        10.0, description="How long a stream is silent before it gets a comment."
    )
    send_timeout_s: Seconds = Field(
        120.0, description="How long to wait for a client that does not read its stream."
    )
    generation_timeout_s: Seconds = Field(3_600.0, description="Longest time for one generation.")
    grace_s: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="How long requests may go on after SIGTERM."
    )

    # Files behind image URLs
    files_folder: Path | None = Field(
        None, description="Parent of the images' folder; by default the system's temporary folder."
    )
    max_files: int = Field(1_000, ge=1, description="Most images kept behind URLs.")
    max_files_bytes: int = Field(
        1_073_741_824, ge=67_108_864, description="Most bytes of images kept behind URLs."
    )
    files_ttl_s: Seconds = Field(3_600.0, description="How long an image URL works.")

    log_level: LogLevel = Field("info", description="Least severe level that is logged.")

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
        """The model that each alias stands for; empty for the default model."""
        pairs = (alias.partition("=") for alias in self.model_aliases)
        return {name.strip(): model.strip() for name, _, model in pairs}
