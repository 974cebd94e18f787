"""The parts that a loaded model is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from latentwire_server.models.text.prompt_reader import PLAIN_PROMPTS, PromptOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    from latentwire_server.models.components.latent_projection import LatentProjection
    from latentwire_server.models.protocol import SafetyChecker, Watermark
    from latentwire_server.models.text.clip_encoder import TextEncoder


class LoadedLoras(Protocol):
    """Parts with adapters in them."""

    def scaled(self, scales: Mapping[str, float]) -> Components:
        """Returns the parts with the adapters at these scales, by id."""


class LoraStore(Protocol):
    """The adapters that fit a model."""

    def loaded(self, ids: Sequence[str], parts: Components) -> LoadedLoras:
        """Returns the parts with adapters in them; the parts themselves stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """The parts of a model, in evaluation mode and on the device once it is loaded."""

    text_encoders: tuple[TextEncoder, ...]
    """In the order in which the pipeline asks them."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    scheduler_config: Mapping[str, object]
    projection: LatentProjection
    safety_checker: SafetyChecker | None = None
    watermark: Watermark | None = None
    prompt_options: PromptOptions = PLAIN_PROMPTS
    words: tuple[str, ...] = ()
    """What embeddings of the operator's stand for."""
    options: Mapping[str, object] = field(default_factory=dict)
    """What the pipeline's own configuration says besides."""
    loras: LoraStore | None = None
    """The adapters that fit it."""

    @property
    def networks(self) -> dict[str, object]:
        """The parts that have weights, by their folders' names."""
        encoders = {encoder.name: encoder.module for encoder in self.text_encoders}
        return {**encoders, "unet": self.unet, "vae": self.vae}
