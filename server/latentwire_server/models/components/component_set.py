"""The parts that a loaded model is made of, and the lock under which they are built."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from latentwire_server.models.text.prompt_reader import PLAIN_PROMPTS, PromptOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    from latentwire_server.models.components.autoencoder import LatentProjection
    from latentwire_server.models.protocol import SafetyChecker, Watermark
    from latentwire_server.models.text.clip_encoder import TextEncoder

LIBRARY_LOCK: Final = threading.RLock()
"""Held by all code that builds torch modules with diffusers, transformers or PEFT: they patch torch
for the whole process meanwhile, and two at a time would leave each other's weights without storage.
Modules that are built already can be used."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """The parts of a model; once it is loaded, in evaluation mode and on the device."""

    text_encoders: tuple[TextEncoder, ...]
    """In the pipeline's order."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    scheduler_config: Mapping[str, object]
    projection: LatentProjection
    safety_checker: SafetyChecker | None = None
    watermark: Watermark | None = None
    prompt_options: PromptOptions = PLAIN_PROMPTS
    words: tuple[str, ...] = ()
    """The words of the operator's textual inversion embeddings."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The family's options in the pipeline's own configuration."""

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The parts with weights, by the names of their folders."""
        encoders = {encoder.name: encoder.module for encoder in self.text_encoders}
        networks = {**encoders, "unet": self.unet, "vae": self.vae}
        # The library's types do not say that they are modules.
        return cast("dict[str, torch.nn.Module]", networks)
