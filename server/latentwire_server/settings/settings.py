"""Everything an operator may set, read once by ``__main__`` and handed down in parts.

A flag beats the environment (``LATENTWIRE_*``), which beats ``[server]`` of ``latentwire.toml``,
which beats the default. Nothing else in the server reads the environment.
"""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - pydantic resolves annotations at run time
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self, get_origin

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from latentwire._process import is_loopback
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
from latentwire_server.requests.refused_words import NoWordError, RefusedWords
from latentwire_server.settings.files import (
    CONFIG_FILE,
    SettingsError,
    _ConfigurationFile,
    _lines,
    read_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENV_PREFIX: Final = "LATENTWIRE_"
SECRET_FIELDS: Final = frozenset({"api_keys", "admin_keys"})
"""Never taken from the command line, where every user of the machine could read them."""
STRUCTURED_FIELDS: Final = frozenset({"models"})
"""Too much for a flag: tables of the configuration file."""
_OF_ONE_MODEL: Final = ("model", "model_id", "model_aliases", *OF_ONE_SOURCE)


class Settings(ModelOptions, BaseSettings):
    """The server's settings; among them the options of models, where an entry says nothing."""

    model_config = SettingsConfigDict(
        # Flags and the environment are text.
        strict=False,
        enable_decoding=False,
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        toml_file=None,
        hide_input_in_errors=True,
    )
    config_file: ClassVar[Path | None] = None

    # Listening
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    port_file: Path | None = Field(
        None, description="File that receives the chosen port once the server listens."
    )
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; turns TLS on.")
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities; clients must show a certificate signed by one of them."
    )

    # Access
    api_keys: tuple[SecretStr, ...] = Field(
        (), description="Keys that callers must show, separated by commas."
    )
    api_keys_file: Path | None = Field(
        None, description="File with one key per line; '#' starts a comment."
    )
    admin_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Keys that callers of ModelAdmin must show, separated by commas; without any,"
        " it is open to this machine where nothing else asks for keys, and closed elsewhere.",
    )
    admin_keys_file: Path | None = Field(
        None, description="File with one such key per line; '#' starts a comment."
    )
    insecure: bool = Field(
        default=False,
        description="Allows to listen beyond this machine without any authentication.",
    )

    # Life
    grace_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="How long running generations may go on after SIGTERM.",
    )
    max_request_bytes: int = Field(
        64 * 1024 * 1024, ge=65_536, le=2**31 - 1, description="Largest request message."
    )
    log_format: Literal["human", "json"] = Field("human", description="How log lines look.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe lines that are logged."
    )

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

    models: tuple[ModelEntry, ...] = Field(
        (),
        description="Several models in the place of one: `[[models]]` of latentwire.toml, or the"
        " same as a JSON list; see docs/models.md.",
    )

    memory_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes that loaded models take together, weights and what is compiled; by"
        " default three quarters of the device's memory. Models that nobody needs are unloaded to"
        " make room.",
    )

    max_lora_bytes: int | None = Field(
        None, ge=1, description="Most memory that adapters take on the device; by default 1 GiB."
    )

    refused_words_file: Path | None = Field(
        None,
        description="File with one word or phrase per line that prompts must not have; '#' starts"
        " a comment.",
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
        description="Most rows in one denoiser call; by default as many as pay, measured at the"
        " start, or 8 with reproducible batching.",
    )
    max_queued: int = Field(64, ge=1, le=100_000, description="Most generations that wait.")
    max_running: int = Field(
        16, ge=1, le=10_000, description="Most generations in progress at once."
    )
    send_timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="How long a client may read nothing."
    )
    queued_event_interval_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="How often a waiting client hears of its place.",
    )
    replay_ttl_s: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a generation with a request id is remembered for repeats after its"
        " end, and goes on with nobody reading it where its caller wants that.",
    )
    replay_max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=0,
        description="Most bytes of ended generations that are remembered for repeats.",
    )
    mask_feather: float = Field(
        4.0,
        ge=0,
        le=256,
        allow_inf_nan=False,
        description="Pixels inside a mask's edge over which what was drawn passes into what was"
        " kept.",
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
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: flags, environment, ``latentwire.toml``."""
        file = _ConfigurationFile(settings_cls, toml_file=cls.config_file)
        return (init_settings, env_settings, file)

    @field_validator("*", mode="before")
    @classmethod
    def _split_commas(cls, value: object, field: ValidationInfo) -> object:
        is_list = get_origin(cls.model_fields[field.field_name or ""].annotation) is tuple
        if is_list and isinstance(value, str) and field.field_name not in STRUCTURED_FIELDS:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

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

    @field_validator("log_level", "batching", "dtype", "denoiser_backend", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            message = "tls_cert_file and tls_key_file belong together: set both or none"
            raise ValueError(message)
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            message = "tls_client_ca_file needs tls_cert_file and tls_key_file"
            raise ValueError(message)
        authenticates = self.api_keys or self.api_keys_file or self.tls_client_ca_file
        if not (is_loopback(self.host) or authenticates or self.insecure):
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
        """The models to serve, the default one first, with the server's options for their own."""
        one = ModelEntry.model_construct(
            source=self.model,
            id=self.model_id or id_of_source(self.model),
            aliases=self.model_aliases,
        )
        entries = tuple(entry.with_defaults(self) for entry in self.models or (one,))
        if self.batching is not Batching.REPRODUCIBLE:
            return entries
        # A choice by measured speed may fall otherwise after the next start, and bytes with it.
        return tuple(
            entry.model_copy(update={"denoiser_backend": "eager"})
            if entry.denoiser_backend == "auto"
            else entry
            for entry in entries
        )

    @property
    def limit_overrides(self) -> dict[str, int]:
        """The limits that replace a model's own, by the name of ``ModelLimits``' field."""
        sizes = ("max_side", "max_pixels", "max_prompt_bytes", "max_lora_bytes")
        names = (*sizes, "max_inference_steps", "max_images")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def read_api_keys(self) -> tuple[str, ...]:
        """Returns every key, of the setting and of the file.

        Raises:
            SettingsError: the file cannot be read or holds no key.
        """
        return self._read_keys("api_keys_file", self.api_keys)

    def read_admin_keys(self) -> tuple[str, ...]:
        """Returns every key for ``ModelAdmin``, of the setting and of the file.

        Raises:
            SettingsError: the file cannot be read or holds no key.
        """
        return self._read_keys("admin_keys_file", self.admin_keys)

    @property
    def admin_is_open(self) -> bool:
        """Whether ``ModelAdmin`` may be called without an admin key, if there are none.

        Whoever may use this machine may do as much to the server by other means.
        """
        asks = self.api_keys or self.api_keys_file or self.tls_client_ca_file
        return is_loopback(self.host) and not asks

    def _read_keys(self, field: str, given: tuple[SecretStr, ...]) -> tuple[str, ...]:
        keys = [key.get_secret_value() for key in given]
        path: Path | None = getattr(self, field)
        if path is not None:
            found = _lines(field, path)
            if not found:
                message = f"{field}={str(path)!r}: holds no key"
                raise SettingsError(message)
            keys += found
        return tuple(keys)

    def read_refused_words(self) -> RefusedWords | None:
        """Returns the words that prompts must not have; None: there is no list.

        Raises:
            SettingsError: the file cannot be read, holds no word, or something that is none.
        """
        path = self.refused_words_file
        if path is None:
            return None
        entries = _lines("refused_words_file", path)
        try:
            if entries:
                return RefusedWords(entries)
            reason = "holds no word"
        except NoWordError as error:
            reason = f"{str(error)!r} has neither letter nor digit"
        message = f"refused_words_file={str(path)!r}: {reason}"
        raise SettingsError(message)


def load_settings(flags: dict[str, object], *, config_file: Path | None = None) -> Settings:
    """Reads the settings from flags, environment and file.

    Args:
        flags: what the command line gave, by field.
        config_file: a TOML file that must exist; None: ``latentwire.toml`` if it does.

    Raises:
        SettingsError: something is wrong; all of it is named in one line.
    """
    path = config_file or CONFIG_FILE
    if config_file is not None:
        read_file("config", config_file)
    located: type[Settings] = type("Settings", (Settings,), {"config_file": path})
    try:
        return located(**flags)  # type: ignore[arg-type] # pydantic checks them, that is the point
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(error, flags))) from None
    except ValueError as error:  # tomllib.TOMLDecodeError, a table that means nothing
        message = f"{path}: {error}"
        raise SettingsError(message) from None


def _name_conflicts(models: Sequence[ModelEntry]) -> Iterator[str]:
    """Yields what is wrong with the names: each may mean one model only."""
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
    """Yields the options that the embedded model is given and does not have."""
    sources: list[tuple[str, ModelOptions, str]] = [
        (model.source, model, f"models[{index}].") for index, model in enumerate(settings.models)
    ]
    for source, options, place in sources or [(settings.model, settings, "")]:
        for name in OF_ONE_SOURCE if source == EMBEDDED_ID else ():
            if getattr(options, name) is not None:
                yield f"{place}{name}: the embedded model has none; leave it out"


def _place(parts: tuple[int | str, ...]) -> str:
    """Returns ``models[1].dtype`` and the like."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[1:]


def _describe(error: ValidationError, flags: dict[str, object]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        field = _place(problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if not field:
            lines.append(reason)
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{field}: no such setting")
        elif problem["loc"][0] in SECRET_FIELDS:
            lines.append(f"{field}: {reason}")
        else:
            lines.append(f"{field}={problem.get('input', flags.get(field))!r}: {reason}")
    return lines
