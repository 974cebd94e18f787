"""Everything an operator may set, read once by ``__main__`` and handed down in parts.

``latentwire._service_settings`` says where settings come from. Nothing else in the server reads the
environment.
"""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - pydantic resolves annotations at run time
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import CLI_SUPPRESS, NoDecode, SettingsConfigDict

from latentwire._process import is_loopback
from latentwire._service_settings import ANY_CASE, COMMA_SEPARATED, ServiceSettings
from latentwire_server.engine.settings import Batching, EngineSettings
from latentwire_server.models.info import DEFAULT_LORA_BYTES
from latentwire_server.models.source import MAX_PROMPT_CHUNKS
from latentwire_server.settings.model_entry import (
    ID_PATTERN,
    HubLora,
    ListedModel,
    name_conflicts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

TABLES: Final = ("server", "bridge", "models")
"""What the configuration file may hold."""
Keys = Annotated[tuple[SecretStr, ...], NoDecode, COMMA_SEPARATED, CLI_SUPPRESS]
"""Without a flag: every user of the machine could read it."""
_OF_ONE_MODEL: Final = (
    "model",
    "revision",
    "variant",
    "single_file_config",
    "model_id",
    "model_aliases",
)


class Settings(ServiceSettings):
    """The server's settings."""

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
        None, description="PEM authorities; clients must show a certificate signed by one of them."
    )

    # Access
    api_keys: Keys = Field((), description="Keys that callers must show, separated by commas.")
    api_keys_file: Path | None = Field(
        None, description="File with one key per line; '#' starts a comment."
    )
    admin_keys: Keys = Field(
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
    log_level: Annotated[Literal["debug", "info", "warning", "error"], ANY_CASE] = Field(
        "info", description="The least severe lines that are logged."
    )

    # Model
    model: str = Field(
        "embedded",
        min_length=1,
        description="'embedded', a hub id, a diffusers folder or a .safetensors checkpoint.",
    )
    revision: str | None = Field(
        None, description="Revision of a hub model: branch, tag or commit."
    )
    variant: str | None = Field(None, description="Variant of the weights, such as 'fp16'.")
    single_file_config: str | None = Field(
        None, description="Diffusers folder or hub id with the configuration of a checkpoint."
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ANY_CASE] = Field(
        "auto",
        description="Number format of the denoiser; 'auto' takes the device's fastest exact one.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.",
    )
    denoiser_backend: Annotated[Literal["auto", "eager", "inductor", "openvino"], ANY_CASE] = Field(
        "auto",
        description="How the denoiser runs: 'inductor' and 'openvino' compile it before the server"
        " is ready, 'eager' does not; 'auto' is 'openvino' on a CPU where that is installed and"
        " faster, and the batching dynamic.",
    )
    model_id: str | None = Field(
        None,
        pattern=ID_PATTERN,
        description="Id under which the model is served; by default the last part of its name.",
    )
    model_aliases: Annotated[tuple[str, ...], NoDecode, COMMA_SEPARATED] = Field(
        (), description="Other names under which the model is served, separated by commas."
    )

    models: Annotated[tuple[ListedModel, ...], NoDecode, CLI_SUPPRESS] = Field(
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

    # Prompts
    embeddings_folder: Path | None = Field(
        None,
        description="Folder with .safetensors of textual inversion, one for each word.",
    )
    prompt_weighting: bool = Field(
        default=False,
        description="Takes brackets in prompts for weights: (word:1.3), (word), [word].",
    )
    max_prompt_chunks: int = Field(
        1,
        ge=1,
        le=MAX_PROMPT_CHUNKS,
        description="How often the text encoder reads on: 3 reads prompts of up to 225 tokens.",
    )

    # Adapters
    lora_folder: Path | None = Field(
        None, description="Folder of LoRA files (.safetensors) that requests may ask for by name."
    )
    loras: Annotated[tuple[HubLora, ...], NoDecode, COMMA_SEPARATED] = Field(
        (),
        description="LoRA files from the hub, separated by commas: 'owner/repository', or"
        " 'owner/repository/file.safetensors' where there are several.",
    )
    max_lora_bytes: int | None = Field(
        None, ge=1, description="Most memory that adapters take on the device; by default 1 GiB."
    )

    # Safety
    safety_checker: bool = Field(
        default=True,
        description="Withholds what the model's own safety checker flags, if it brings one.",
    )
    unchecked_previews: bool = Field(
        default=False,
        description="Sends previews of a model with a safety checker too, which they do not pass.",
    )

    watermark: bool = Field(
        default=False,
        description="Writes diffusers' invisible watermark into pictures; needs"
        " `latentwire[watermark]`.",
    )

    refused_words_file: Path | None = Field(
        None,
        description="File with one word or phrase per line that prompts must not have; '#' starts"
        " a comment.",
    )

    # Engine
    batching: Annotated[Batching, ANY_CASE] = Field(
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
        found = list(name_conflicts(self.models))
        if self.models:
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
    def limit_overrides(self) -> dict[str, int]:
        """The limits that replace a model's own, by the name of ``ModelLimits``' field."""
        sizes = ("max_side", "max_pixels", "max_prompt_bytes", "max_lora_bytes")
        names = (*sizes, "max_inference_steps", "max_images")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def admin_is_open(self) -> bool:
        """Whether ``ModelAdmin`` may be called without an admin key, if there are none.

        Whoever may use this machine may do as much to the server by other means.
        """
        asks = self.api_keys or self.api_keys_file or self.tls_client_ca_file
        return is_loopback(self.host) and not asks
