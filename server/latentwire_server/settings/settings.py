"""Everything an operator may set, read once by ``__main__`` and handed down in parts.

``latentwire._services.settings`` reads them from flags, environment and file. Nothing else in the
server reads the environment.
"""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - pydantic resolves annotations at run time
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import CLI_SUPPRESS, SettingsConfigDict

from latentwire._services.process import is_loopback
from latentwire._services.settings import LogLevel, Seconds, ServiceSettings
from latentwire_server.engine.settings import Batching, EngineSettings
from latentwire_server.models.info import DEFAULT_LORA_BYTES
from latentwire_server.models.model_options import (
    EMBEDDED_ID,
    ID_PATTERN,
    OF_ONE_SOURCE,
    ModelEntry,
    ModelOptions,
    id_of_source,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TABLES: Final = ("server", "bridge", "models")
"""What the configuration file may hold."""
Keys = Annotated[tuple[SecretStr, ...], CLI_SUPPRESS]
"""Without a flag: every user of the machine could read it."""
_LIMITS: Final = (
    "max_side",
    "max_pixels",
    "max_prompt_bytes",
    "max_lora_bytes",
    "max_inference_steps",
    "max_images",
)
_OF_ONE_MODEL: Final = ("model", "model_id", "model_aliases", *OF_ONE_SOURCE)


class Settings(ModelOptions, ServiceSettings):
    """The server's settings, including the default options of its models."""

    model_config = SettingsConfigDict(env_prefix="LATENTWIRE_")
    program: ClassVar = "latentwire-server"
    summary: ClassVar = "Serves image generation over gRPC, every denoising step on the wire."
    table: ClassVar = "server"

    # Listening
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    port_file: Path | None = Field(
        None, description="File that receives the chosen port once the server listens."
    )
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; turns TLS on.")
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca_file: Path | None = Field(
        None,
        description="PEM authorities; clients must present a certificate signed by one of them.",
    )

    # Access
    api_keys: Keys = Field((), description="API keys that callers may use, separated by commas.")
    api_keys_file: Path | None = Field(
        None, description="File with one API key per line; '#' starts a comment."
    )
    admin_keys: Keys = Field(
        (),
        description="Keys for ModelAdmin, separated by commas. Without any, ModelAdmin is open on a"
        " loopback address that needs no authentication, and closed otherwise.",
    )
    admin_keys_file: Path | None = Field(
        None, description="File with one ModelAdmin key per line; '#' starts a comment."
    )
    insecure: bool = Field(
        default=False,
        description="Allow listening on non-loopback addresses without authentication.",
    )

    # Life
    grace_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="How long to let running generations finish after SIGTERM.",
    )
    max_request_bytes: int = Field(
        64 * 1024 * 1024, ge=65_536, le=2**31 - 1, description="Largest request message in bytes."
    )
    log_format: Literal["human", "json"] = Field("human", description="Format of log lines.")
    log_level: LogLevel = Field("info", description="Least severe level that is logged.")

    # Model
    model: str = Field(
        "embedded",
        min_length=1,
        description="'embedded', a hub id, a diffusers folder or a .safetensors checkpoint.",
    )
    model_id: str | None = Field(
        None,
        pattern=ID_PATTERN,
        description="Id under which the model is served; by default the last part of its name.",
    )
    model_aliases: tuple[str, ...] = Field(
        (), description="Other names under which the model is served, separated by commas."
    )

    models: Annotated[tuple[ModelEntry, ...], CLI_SUPPRESS] = Field(
        (),
        description="Several models instead of one: `[[models]]` in latentwire.toml, or the same as"
        " a JSON list; see docs/models.md.",
    )

    memory_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes that loaded models may take together, weights and compiled code; by"
        " default three quarters of the device's memory. Idle models are unloaded to make room.",
    )

    max_lora_bytes: int | None = Field(
        None, ge=1, description="Most bytes of LoRAs kept on the device; by default 1 GiB."
    )

    refused_words_file: Path | None = Field(
        None,
        description="File with one word or phrase per line that prompts must not contain; '#'"
        " starts a comment.",
    )

    # Engine
    batching: Batching = Field(
        Batching.DYNAMIC,
        description="'dynamic' is fastest; 'reproducible' gives the same bytes under any load.",
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Most rows in one denoiser call; by default as many as are worth it, measured"
        " when a model is loaded, or 8 with reproducible batching.",
    )
    max_queued: int = Field(64, ge=1, le=100_000, description="Most generations in the queue.")
    max_running: int = Field(
        16, ge=1, le=10_000, description="Most generations in progress at once."
    )
    send_timeout_s: Seconds = Field(
        120.0, description="How long to wait for a client that does not read."
    )
    queued_event_interval_s: Seconds = Field(
        10.0, description="How often a queued client is sent its position."
    )
    replay_ttl_s: Seconds = Field(
        600.0,
        description="How long a finished generation with a request id can be repeated, and how long"
        " one runs on without a reader if its caller asked for that.",
    )
    replay_max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=0,
        description="Most bytes of finished generations kept for repeats.",
    )
    mask_feather: float = Field(
        4.0,
        ge=0,
        le=256,
        allow_inf_nan=False,
        description="Pixels inside a mask's edge over which new content blends into what is kept.",
    )
    decode_interval_ticks: int = Field(
        1, ge=1, description="Denoiser calls between two decodes of finished images."
    )

    # Limits
    max_side: int | None = Field(None, ge=64, description="Largest width and height in pixels.")
    max_pixels: int | None = Field(None, ge=4096, description="Largest width times height.")
    max_inference_steps: int | None = Field(None, ge=1, description="Most denoising steps.")
    max_images: int | None = Field(None, ge=1, le=1000, description="Most images in one request.")
    max_prompt_bytes: int | None = Field(
        None, ge=1, description="Longest prompt in bytes of UTF-8."
    )

    @classmethod
    def from_tables(cls, tables: Mapping[str, object]) -> dict[str, object]:
        """Returns the fields that a configuration file sets: ``[server]`` and ``[[models]]``.

        Raises:
            ValueError: The file has unknown tables, or ``server`` is no table.
        """
        strange = [name for name in tables if name not in TABLES]
        if strange:
            message = f"no such table: {', '.join(strange)}; there are: {', '.join(TABLES)}"
            raise ValueError(message)
        listed = {"models": tables["models"]} if "models" in tables else {}
        return super().from_tables(tables) | listed

    @field_validator("models", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            message = "needed: a JSON list of models"
            raise ValueError(message) from None

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            message = "tls_cert_file and tls_key_file belong together: set both or none"
            raise ValueError(message)
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            message = "tls_client_ca_file needs tls_cert_file and tls_key_file"
            raise ValueError(message)
        if not (is_loopback(self.host) or self._authenticates or self.insecure):
            message = (
                f"host={self.host!r} is reachable from other machines: set api_keys, api_keys_file"
                " or tls_client_ca_file, or pass --insecure"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        found = [*_name_conflicts(self.models), *_embedded_conflicts(self)]
        if self.models:
            found += [
                f"models[{index}].device: one device serves all models, say it in [server]"
                for index, entry in enumerate(self.models)
                if "device" in entry.model_fields_set
            ]
            found += [
                f"{name}={getattr(self, name)!r}: models are listed, say it in [[models]]"
                for name in _OF_ONE_MODEL
                if name in self.model_fields_set
            ]
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def engine(self) -> EngineSettings:
        """The engine's part."""
        return EngineSettings(
            batching=self.batching,
            max_rows=self.max_rows,
            max_queued=self.max_queued,
            max_running=self.max_running,
            send_timeout_s=self.send_timeout_s,
            queued_event_interval_s=self.queued_event_interval_s,
            mask_feather=self.mask_feather,
            lora_bytes=self.max_lora_bytes or DEFAULT_LORA_BYTES,
            decode_interval_ticks=self.decode_interval_ticks,
        )

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models to serve, the default one first, with the server's options filled in."""
        one = ModelEntry.model_construct(
            source=self.model,
            id=self.model_id or id_of_source(self.model),
            aliases=self.model_aliases,
        )
        entries = tuple(entry.with_defaults(self) for entry in self.models or (one,))
        if self.batching is not Batching.REPRODUCIBLE:
            return entries
        # Measured speed may choose another backend after the next start, and change the bytes.
        return tuple(
            entry.model_copy(update={"denoiser_backend": "eager"})
            if entry.denoiser_backend == "auto"
            else entry
            for entry in entries
        )

    @property
    def limit_overrides(self) -> dict[str, int]:
        """The limits that replace a model's own, by field of ``ModelLimits``."""
        return {name: getattr(self, name) for name in _LIMITS if getattr(self, name) is not None}

    @property
    def admin_is_open(self) -> bool:
        """Whether ``ModelAdmin`` needs no key if there are no admin keys.

        A user of this machine can do as much to the server by other means.
        """
        return is_loopback(self.host) and not self._authenticates

    @property
    def _authenticates(self) -> bool:
        return bool(self.api_keys or self.api_keys_file or self.tls_client_ca_file)


def _name_conflicts(models: Sequence[ModelEntry]) -> Iterator[str]:
    """Yields each id and alias that two models share."""
    taken: dict[str, str] = {}
    for index, model in enumerate(models):
        names = {"id": (model.id,), "aliases": model.aliases}
        for field, values in names.items():
            place = f"models[{index}].{field}"
            for value in values:
                if value in taken:
                    yield f"{place}={value!r}: already means a model ({taken[value]})"
                taken.setdefault(value, place)


def _embedded_conflicts(settings: Settings) -> Iterator[str]:
    """Yields each option that the embedded model is given but does not have."""
    sources: list[tuple[str, ModelOptions, str]] = [
        (model.source, model, f"models[{index}].") for index, model in enumerate(settings.models)
    ]
    for source, options, place in sources or [(settings.model, settings, "")]:
        for name in OF_ONE_SOURCE if source == EMBEDDED_ID else ():
            if getattr(options, name) is not None:
                yield f"{place}{name}: the embedded model has none; leave it out"
