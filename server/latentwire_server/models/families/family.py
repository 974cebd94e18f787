"""What a family of models says of itself: how its folders look, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.components.latent_projection import LatentProjection
    from latentwire_server.models.families.unet_model import UnetModel

TOKENIZERS: Final = ("CLIPTokenizer", "CLIPTokenizerFast")
_ABSENT: Final = [None, None]


def _no_refusal(_parts: Components) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderKind:
    """A text encoder that a family's folders have."""

    class_name: str
    suffix: str = ""
    """Of its folders' names: ``text_encoder_2`` goes with ``tokenizer_2``."""
    is_optional: bool = False

    @property
    def name(self) -> str:
        """The network's folder."""
        return f"text_encoder{self.suffix}"

    @property
    def tokenizer(self) -> str:
        """The tokenizer's folder."""
        return f"tokenizer{self.suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model with a UNet. All that a new one needs is a file with one of these."""

    name: str
    """As clients see it."""
    model: Callable[..., UnetModel]
    """Makes one of info, components and a backend."""
    pipelines: tuple[str, ...]
    """Classes that a folder's ``model_index.json`` may name."""
    text_encoders: tuple[TextEncoderKind, ...]
    projection: LatentProjection
    options: Mapping[str, bool] = field(default_factory=dict)
    """What ``model_index.json`` may say besides, with the pipeline's defaults."""
    addition_embed_types: tuple[str | None, ...] = (None,)
    """What its UNets may be told besides the prompt, by diffusers' word."""
    upcasts_autoencoder: bool = False
    """Whether an autoencoder in float16 computes in float32 where it asks to."""
    guidance_scale: float = 7.5
    least_drawn_share: float = 0.0
    """Pictures of less of the model's own area are drawn larger and made smaller."""
    single_file_pipeline: str
    """The pipeline that reads a checkpoint in one file."""
    single_file_marker: str
    """How a tensor's name begins that only this family's checkpoints have."""
    single_file_options: Mapping[str, object] = field(default_factory=dict)
    refusal: Callable[[Components], str | None] = _no_refusal
    """Returns why parts do not fit together, beyond what holds for every family."""

    def present(self, index: Mapping[str, object]) -> tuple[TextEncoderKind, ...]:
        """Returns the text encoders that a ``model_index.json`` has."""
        return tuple(
            kind
            for kind in self.text_encoders
            if not (kind.is_optional and index.get(kind.name) == _ABSENT)
        )
