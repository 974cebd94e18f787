"""Where a model comes from, and how it is to be loaded. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.models.overrides import ModelSettings

EMBEDDED_ID: Final = "embedded"
MAX_PROMPT_CHUNKS: Final = 8
MISSING_WATERMARK: Final = "needed: invisible-watermark, by pip install 'latentwire[watermark]'"
EMBEDDED_FOLDER: Final = Path(__file__).parents[1] / "embedded" / "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that a server is told to serve."""

    id: str
    source: str
    """A local diffusers folder, a ``.safetensors`` checkpoint, or a hub id."""
    revision: str | None = None
    variant: str | None = None
    token: str | None = None
    """Of the hub. None: huggingface_hub's own environment variables and login hold."""
    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    """How the denoiser is run: a value of ``DenoiserBackend``."""
    denoiser_cache: Path | None = None
    """Where converted denoisers are kept for the next start; None: nowhere."""
    display_name: str = ""
    aliases: tuple[str, ...] = ()
    single_file_config: str | None = None
    """For a checkpoint: a diffusers folder or hub id with its configuration and tokenizer.

    None: diffusers finds out the checkpoint's origin and asks the hub.
    """
    lora_folder: Path | None = None
    """Where adapters lie that requests may ask for."""
    loras: tuple[str, ...] = ()
    """Adapters from the hub: ids of repositories, each with a file's name where it has several."""
    safety_checker: bool = True
    """Whether the model's own safety checker is loaded, if it brings one."""
    unchecked_previews: bool = False
    """Whether a model with a safety checker sends previews, which it does not see."""
    watermark: bool = False
    """Whether finished pictures carry an invisible watermark."""
    embeddings_folder: Path | None = None
    """With the words that embeddings stand for."""
    prompt_weighting: bool = False
    """Whether brackets in prompts weigh what they hold."""
    max_prompt_chunks: int = 1
    """How often the text encoder reads on."""
    refiner: str | None = None
    """What takes the low noise levels: a folder or hub id of the same variant, or a checkpoint."""
    refiner_single_file_config: str | None = None
    """For a refiner that is a checkpoint: what ``single_file_config`` is for the model."""
    high_noise_frac: float = 0.8
    """Where a request that does not say leaves off for the refiner."""
    vae: str | None = None
    """A local folder or hub id of an autoencoder in place of the model's own."""
    limit_overrides: Mapping[str, int] = field(default_factory=dict)
    """Fields of ``ModelLimits`` to replace."""
    overrides: ModelSettings | None = None
    """What the operator says in place of the folder's own settings."""

    @property
    def of_refiner(self) -> ModelSource | None:
        """Where its refiner comes from; None: it has none."""
        if self.refiner is None:
            return None
        return replace(
            self,
            id=f"{self.id}/refiner",
            source=self.refiner,
            revision=None,
            single_file_config=self.refiner_single_file_config,
            safety_checker=False,
            watermark=False,
            overrides=None,
            lora_folder=None,
            loras=(),
            refiner=None,
            vae=None,
        )


def embedded_source(
    *, device: str = "auto", dtype: str = "auto", backend: str = "auto"
) -> ModelSource:
    """Returns the model that ships with the product."""
    return ModelSource(
        id=EMBEDDED_ID, source=str(EMBEDDED_FOLDER), device=device, dtype=dtype, backend=backend
    )
