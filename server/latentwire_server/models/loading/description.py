"""The description of a model, read off its parts and its folder's settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latentwire_server.models.components.autoencoder import vae_scale_factor
from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import (
    HIGH_RESOLUTION_STRENGTH,
    PROMPT_WEIGHTING,
    ModelDefaults,
    ModelInfo,
    ModelLimits,
    SchedulerChoice,
)
from latentwire_server.models.loading.folder_settings import SETTINGS_FILE
from latentwire_server.models.schedulers.sampler_table import choice_of, scheduler_infos

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.loading.checkpoint import Checkpoint
    from latentwire_server.models.loading.diffusers_folder import DiffusersFolder

_NUM_INFERENCE_STEPS: Final = 25
_NUM_FEW_STEPS: Final = 4
_NO_GUIDANCE: Final = 1.0
_TRAILING: Final = ("trailing", "epsilon")
_EMBEDDED_GUIDANCE_SCALE: Final = 8.5
_MAX_NATIVE_MULTIPLE: Final = 4


def describe(files: DiffusersFolder | Checkpoint, parts: Components, *, id_: str) -> ModelInfo:
    """Returns what clients see of a model, as far as its own files say.

    Args:
        files: its files.
        parts: what it is made of.
        id_: its id.

    Raises:
        LoadError: it is of a kind that is not served, or its settings are wrong.
    """
    family, source, config = files.family, files.source, parts.unet.config
    if (
        config["addition_embed_type"] not in family.addition_embed_types
        or config["class_embed_type"] is not None
    ):
        raise LoadError(source, f"its UNet takes other conditions than those of {family.name}")
    _refuse_mixed_parts(source, parts)
    refusal = family.refusal(parts)
    if refusal is not None:
        raise LoadError(source, refusal)
    factor = vae_scale_factor(parts.vae)
    size: int | tuple[int, int] = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sees_masks = config.in_channels != config.out_channels
    native = ModelDefaults(
        high_resolution_fix=None if sees_masks else HIGH_RESOLUTION_STRENGTH,
        width=width * factor,
        height=height * factor,
        num_inference_steps=_NUM_INFERENCE_STEPS,
        guidance_scale=family.guidance_scale,
        scheduler=_own_choice(source, parts.scheduler_config),
    )
    num_layers = min(one.module.config.num_hidden_layers for one in parts.text_encoders)
    max_side = min(2048, _MAX_NATIVE_MULTIPLE * max(native.width, native.height))
    info = ModelInfo(
        id=id_,
        display_name=id_,
        family=family.name,
        revision="",
        schedulers=scheduler_infos(),
        limits=ModelLimits(
            min_side=min(64, native.width, native.height),
            max_side=max_side,
            side_multiple=factor,
            max_pixels=max_side * max_side,
            min_drawn_pixels=int(family.least_drawn_share * native.width * native.height),
            max_clip_skip=max(0, num_layers - 1),
        ),
        defaults=_if_distilled(native, parts),
        capabilities=_capabilities(parts),
        guidance_is_embedded=config.time_cond_proj_dim is not None,
    )
    return files.settings.apply_to(info, source=source, place=SETTINGS_FILE)


def _if_distilled(native: ModelDefaults, parts: Components) -> ModelDefaults:
    """Returns the defaults of a model that was distilled to few steps, if it was.

    Latent consistency models take the guidance scale as an input. Turbo and Lightning models, which
    have learnt their guidance, can only be identified by the spacing of their timesteps: no other
    models that predict noise have trailing ones.
    """
    config = parts.scheduler_config
    if parts.unet.config.time_cond_proj_dim is not None:
        guidance_scale = _EMBEDDED_GUIDANCE_SCALE
    elif (config.get("timestep_spacing"), config.get("prediction_type", "epsilon")) == _TRAILING:
        guidance_scale = _NO_GUIDANCE
    else:
        return native
    return replace(native, num_inference_steps=_NUM_FEW_STEPS, guidance_scale=guidance_scale)


def _capabilities(parts: Components) -> tuple[str, ...]:
    present = {
        "safety-checker": parts.safety_checker is not None,
        PROMPT_WEIGHTING: parts.prompt_options.is_weighted,
        "textual-inversion": bool(parts.words),
        "long-prompts": parts.prompt_options.max_chunks > 1,
    }
    return ("image-to-image", "inpainting", *(name for name, has_it in present.items() if has_it))


def _refuse_mixed_parts(source: str, parts: Components) -> None:
    """Refuses parts of different models, which would fail at the first request.

    A token beyond the vocabulary is worst: on a GPU it breaks the device for the whole process.
    """
    unet, encoders = parts.unet.config, parts.text_encoders
    channels = parts.vae.config.latent_channels
    reasons = {
        "the tokenizer has more tokens than the text encoder": any(
            len(one.tokenizer) > one.module.config.vocab_size for one in encoders
        ),
        "the tokenizer's model_max_length is missing or beyond the text encoder's": any(
            one.tokenizer.model_max_length > one.module.config.max_position_embeddings
            for one in encoders
        ),
        "the UNet's cross_attention_dim is not the text encoder's hidden_size": (
            unet.cross_attention_dim != sum(one.module.config.hidden_size for one in encoders)
        ),
        "the UNet's out_channels are not the autoencoder's latent_channels": (
            unet.out_channels != channels
        ),
        f"its UNet takes {unet.in_channels} channels; served: the latents' {channels}, or for"
        f" inpainting {2 * channels + 1}, with a mask and the masked picture's besides": (
            unet.in_channels not in (channels, 2 * channels + 1)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise LoadError(source, reason)


def _own_choice(source: str, config: Mapping[str, object]) -> SchedulerChoice:
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        # Half of the schedulers cannot take "sample", and would fail in the middle of an image.
        raise LoadError(source, f"prediction_type {predicts!r} is not epsilon or v_prediction")
    try:
        return choice_of(config)
    except ValueError as error:
        raise LoadError(source, str(error)) from None
