"""A family of models: how its folders look, and what its models can do.

Read on every thread; ``describe`` is for loading threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

import diffusers

from latentwire_server.models.components.autoencoder import vae_scale_factor
from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import (
    HIGH_RESOLUTION_STRENGTH,
    PROMPT_WEIGHTING,
    ModelDefaults,
    ModelInfo,
    ModelLimits,
    SchedulerInfo,
)
from latentwire_server.models.schedulers.sampler_table import choice_of, scheduler_infos

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from latentwire_server.models.adapters.lora_file import LoraLoader
    from latentwire_server.models.architectures.unet_model import UnetModel
    from latentwire_server.models.components.autoencoder import LatentProjection
    from latentwire_server.models.components.component_set import Components

TOKENIZERS: Final = ("CLIPTokenizer", "CLIPTokenizerFast")
_ABSENT: Final = [None, None]
_MAX_NATIVE_MULTIPLE: Final = 4
_FEW_STEPS: Final = 4
_EMBEDDED_GUIDANCE_SCALE: Final = 8.5
_TRAILING: Final = ("trailing", "epsilon")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderKind:
    """A text encoder in a family's folders."""

    class_name: str
    suffix: str = ""
    """Of its folders' names: ``text_encoder_2`` belongs to ``tokenizer_2``."""
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
    """A kind of model with a UNet. A new one is a file with an instance of this class."""

    name: str
    """Its name in the API."""
    model: Callable[..., UnetModel]
    """The model's class."""

    pipelines: tuple[str, ...]
    """The pipeline classes in the ``model_index.json`` of its folders."""
    text_encoders: tuple[TextEncoderKind, ...]
    options: Mapping[str, bool] = field(default_factory=dict)
    """Other settings in ``model_index.json``, with the pipeline's defaults."""
    addition_embed_types: tuple[str | None, ...] = (None,)
    """The conditions that its UNets take besides the prompt, by diffusers' names."""
    misfit: Callable[[Components], str | None] = lambda _parts: None
    """Returns why parts do not fit together, beyond the rules for every family."""

    single_file_pipeline: str
    """The pipeline that loads a single-file checkpoint, and LoRAs."""
    single_file_marker: str
    """A prefix of tensor names that only this family's checkpoints have."""
    single_file_options: Mapping[str, object] = field(default_factory=dict)

    projection: LatentProjection
    upcasts_autoencoder: bool = False
    """Whether an autoencoder in float16 computes in float32 if its configuration asks for that."""

    capabilities: tuple[str, ...] = ("image-to-image", "inpainting")
    """What every model of the family can do."""
    schedulers: Callable[[], tuple[SchedulerInfo, ...]] = scheduler_infos
    limits: ModelLimits = field(default_factory=ModelLimits)
    """Before those that follow from a model's own size and parts."""
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    min_native_share: float = 0.0
    """Images with less than this share of the model's own area are generated larger, and scaled
    down."""

    @property
    def lora_loader(self) -> LoraLoader:
        """Diffusers' loader for LoRAs of this family."""
        return cast("LoraLoader", getattr(diffusers, self.single_file_pipeline))

    def present(self, index: Mapping[str, object]) -> tuple[TextEncoderKind, ...]:
        """Returns the text encoders of a folder with this ``model_index.json``."""
        return tuple(
            kind
            for kind in self.text_encoders
            if not (kind.is_optional and index.get(kind.name) == _ABSENT)
        )

    def describe(self, parts: Components, *, id_: str, source: str) -> ModelInfo:
        """Returns the description of a model of these parts, without anybody's settings.

        Raises:
            LoadError: the parts make no model of this family.
        """
        problem = next(self._problems(parts), None)
        if problem is not None:
            raise LoadError(source, problem)
        config, factor = parts.unet.config, vae_scale_factor(parts.vae)
        size: int | tuple[int, int] = config.sample_size
        height, width = (
            side * factor for side in ((size, size) if isinstance(size, int) else size)
        )
        layers = min(one.module.config.num_hidden_layers for one in parts.text_encoders)
        max_side = min(self.limits.max_side, _MAX_NATIVE_MULTIPLE * max(width, height))
        is_inpainting = config.in_channels != config.out_channels
        native = ModelDefaults(
            width=width,
            height=height,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            scheduler=choice_of(parts.scheduler_config),
            high_resolution_fix=None if is_inpainting else HIGH_RESOLUTION_STRENGTH,
        )
        optional = {
            "safety-checker": parts.safety_checker is not None,
            PROMPT_WEIGHTING: parts.prompt_options.is_weighted,
            "textual-inversion": bool(parts.words),
            "long-prompts": parts.prompt_options.max_chunks > 1,
        }
        return ModelInfo(
            id=id_,
            display_name=id_,
            family=self.name,
            revision="",
            schedulers=self.schedulers(),
            limits=replace(
                self.limits,
                min_side=min(self.limits.min_side, width, height),
                max_side=max_side,
                side_multiple=factor,
                max_pixels=max_side * max_side,
                min_drawn_pixels=int(self.min_native_share * width * height),
                max_clip_skip=max(0, layers - 1),
            ),
            defaults=_for_few_steps(native, parts),
            capabilities=(*self.capabilities, *(name for name, has in optional.items() if has)),
            guidance_is_embedded=config.time_cond_proj_dim is not None,
        )

    def _problems(self, parts: Components) -> Iterator[str]:
        unet, encoders = parts.unet.config, parts.text_encoders
        if unet.addition_embed_type not in self.addition_embed_types or (
            unet.class_embed_type is not None
        ):
            yield f"its UNet takes other conditions than those of {self.name}"
        # Parts of different models would fail at the first request. Worst is a token beyond the
        # vocabulary: on a GPU it breaks the device for the whole process.
        if any(len(one.tokenizer) > one.module.config.vocab_size for one in encoders):
            yield "the tokenizer has more tokens than the text encoder"
        if any(
            one.tokenizer.model_max_length > one.module.config.max_position_embeddings
            for one in encoders
        ):
            yield "the tokenizer's model_max_length is missing or beyond the text encoder's"
        if unet.cross_attention_dim != sum(one.module.config.hidden_size for one in encoders):
            yield "the UNet's cross_attention_dim is not the text encoder's hidden_size"
        channels = parts.vae.config.latent_channels
        if unet.out_channels != channels:
            yield "the UNet's out_channels are not the autoencoder's latent_channels"
        if unet.in_channels not in (channels, 2 * channels + 1):
            yield (
                f"its UNet takes {unet.in_channels} channels; supported: the latents' {channels}"
                f" or, with a mask and the masked image for inpainting, {2 * channels + 1}"
            )
        misfit = self.misfit(parts)
        if misfit is not None:
            yield misfit
        predicts = parts.scheduler_config.get("prediction_type", "epsilon")
        if predicts not in ("epsilon", "v_prediction"):
            # Half of the schedulers cannot take "sample", and would fail in the middle of an image.
            yield f"prediction_type {predicts!r} is not epsilon or v_prediction"
        try:
            choice_of(parts.scheduler_config)
        except ValueError as error:
            yield str(error)


def _for_few_steps(native: ModelDefaults, parts: Components) -> ModelDefaults:
    """Returns the defaults of a model, changed if it was distilled for few steps.

    Latent consistency models take the guidance scale as an input. Turbo and Lightning models, whose
    guidance is learnt, only differ from others that predict noise in their trailing timesteps.
    """
    config = parts.scheduler_config
    if parts.unet.config.time_cond_proj_dim is not None:
        guidance_scale = _EMBEDDED_GUIDANCE_SCALE
    elif (config.get("timestep_spacing"), config.get("prediction_type", "epsilon")) == _TRAILING:
        guidance_scale = 1.0
    else:
        return native
    return replace(native, num_inference_steps=_FEW_STEPS, guidance_scale=guidance_scale)
