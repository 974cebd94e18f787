"""Loads a model: from a diffusers folder, a hub id, or a single ``.safetensors`` checkpoint.

Runs in a thread of its own, before the model is handed to the engine. Downloads first, then looks,
then loads offline: what was looked at is what is loaded. Never runs code that comes with a model.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentwire_server.models.adapters.lora_networks import LoraStore
from latentwire_server.models.adapters.lora_sources import lora_paths
from latentwire_server.models.adapters.textual_inversion import load_words, words_in
from latentwire_server.models.components.placement import check_parts, place
from latentwire_server.models.components.watermark import load_watermark, with_watermark
from latentwire_server.models.denoiser.backends import DenoiserBackend
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.hub import fetching_configurations
from latentwire_server.models.loading.description import describe, with_refiner
from latentwire_server.models.loading.model_parts import Lent, read_model, read_vae
from latentwire_server.models.loading.model_size import model_size, weights_bytes
from latentwire_server.models.loading.reading import (
    ReportingReader,
    has_weights,
    reading,
    without_weights,
)
from latentwire_server.models.loading.shared_encoders import shared_text_encoders
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.source import ModelSource, embedded_source
from latentwire_server.models.text.prompt_reader import PromptOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.families.family import Family
    from latentwire_server.models.families.unet_model import UnetModel
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.models.text.clip_encoder import TextEncoder

__all__ = [
    "LoadError",
    "ModelSource",
    "embedded_source",
    "load_model",
    "model_size",
    "read_spec",
    "weights_bytes",
]


def load_model(
    source: ModelSource, *, report: Callable[[int, int], None] | None = None
) -> UnetModel:
    """Loads a model onto its device.

    Args:
        source: where it comes from.
        report: is told the bytes that are loaded, component by component, and those of all.

    Raises:
        LoadError: it cannot be had or is not to be trusted; one line says why.
        PrecisionError: the device or the number format cannot be had here.
        BackendError: the denoiser's backend cannot be had here.
    """
    if report is None:
        return _load_model(source)
    reader = ReportingReader(report, total_bytes=weights_bytes(source))
    with reading(reader):
        return _load_model(source)


def read_spec(source: ModelSource, *, fetches: bool = False) -> ModelSpec | None:
    """Returns what a model's configuration tells, without its weights.

    None where that is not to be had without them: of a checkpoint whose configuration is in no
    folder on this machine, and of what is on the hub. A refiner or an autoencoder counts like a
    model.

    Args:
        source: where the model comes from.
        fetches: whether configurations are downloaded that are on the hub.

    Raises:
        LoadError: it is not to be trusted, or of a kind that is not served.
    """
    wanted = (source.source, source.refiner, source.vae)
    places = [Path(one).expanduser() for one in wanted if one is not None]
    if not all(_tells_of_itself(one) for one in (source, source.of_refiner) if one is not None):
        return None
    try:
        with reading(without_weights), fetching_configurations() if fetches else nullcontext():
            return _load_model(replace(source, backend=DenoiserBackend.EAGER.value))
    except LoadError:
        if all(place.is_dir() for place in places) and not source.loras:
            raise
        return None  # Loading will download it, or tell why not.


def _tells_of_itself(source: ModelSource) -> bool:
    """Returns whether there is a folder with its configuration, if it is a checkpoint."""
    if not Path(source.source).expanduser().is_file():
        return True
    return source.single_file_config is not None and Path(source.single_file_config).is_dir()


def _load_model(source: ModelSource) -> UnetModel:
    device = choose_device(source.device)
    dtype = choose_dtype(source.dtype, device)
    family, parts, revision, settings = read_model(source, device=device, dtype=dtype)
    revisions = [revision]
    if source.vae is not None:
        vae, revision = read_vae(source, source.vae, dtype=dtype)
        parts = replace(parts, vae=vae)
        revisions.append(revision)
    components = _placed(source, family, _taught(source, parts), device=device)
    info = describe(source, family, components, revision="", settings=settings)
    refiner = None
    if source.of_refiner is not None:
        refiner = _load_refiner(
            source.of_refiner, source, info=info, components=components, device=device, dtype=dtype
        )
        info = with_refiner(info, high_noise_frac=source.high_noise_frac)
        revisions.append(refiner.info.revision)
    info = replace(info, revision="+".join(revisions))
    paths = lora_paths(source)
    loras = None
    if paths:
        loras = LoraStore(paths, components, loader=family.lora_loader)
        info = loras.listed_in(info)
    info = _with_limits(info, source.limit_overrides)
    if source.watermark:
        info = with_watermark(info, source=source.source)
        components = replace(components, watermark=load_watermark(source.source))
    return family.model(
        info,
        components,
        backend=DenoiserBackend(source.backend),
        cache=source.denoiser_cache,
        refiner=refiner,
        loras=loras,
    )


def _taught(source: ModelSource, parts: Components) -> Components:
    """Returns the parts, reading prompts as they are told to, with the operator's words."""
    options = PromptOptions(
        is_weighted=source.prompt_weighting, max_chunks=source.max_prompt_chunks
    )
    words: tuple[str, ...] = ()
    if source.embeddings_folder is not None:
        learnt = load_words if has_weights() else words_in
        words = learnt(source.embeddings_folder.expanduser(), parts.text_encoders)
    encoders = tuple(
        encoder.with_options(options, has_embeddings=bool(words)) for encoder in parts.text_encoders
    )
    return replace(parts, text_encoders=encoders, prompt_options=options, words=words)


def _placed(
    source: ModelSource, family: Family, parts: Components, *, device: torch.device
) -> Components:
    """Returns the parts, checked and on the device."""
    if not has_weights():
        return parts
    check_parts(parts, source=source.source)
    return place(parts, device=device, upcasts=family.upcasts_autoencoder)


def _load_refiner(
    source: ModelSource,
    base: ModelSource,
    *,
    info: ModelInfo,
    components: Components,
    device: torch.device,
    dtype: torch.dtype,
) -> UnetModel:
    """Loads the refiner of a base with this description and these parts.

    It works on the base's latents, and hence with its autoencoder; its text encoders are most
    often the base's too, words included.
    """
    shared = _shared_encoders(source, base, components)
    lent = Lent(vae=components.vae, text_encoders=shared)
    family, parts, revision, settings = read_model(source, device=device, dtype=dtype, lent=lent)
    if family.name != info.family:
        reason = f"its refiner is of the family {family.name}; needed: {info.family}"
        raise LoadError(base.source, reason)
    if components.unet.config.in_channels != components.unet.config.out_channels:
        raise LoadError(base.source, "a model that is made for inpainting takes no refiner")
    if shared:
        options, words = components.prompt_options, components.words
        parts = replace(parts, prompt_options=options, words=words)
    else:
        parts = _taught(source, parts)
    own = _placed(source, family, parts, device=device)
    described = describe(source, family, own, revision=revision, settings=settings)
    return family.model(
        described, own, backend=DenoiserBackend(base.backend), cache=base.denoiser_cache
    )


def _shared_encoders(
    source: ModelSource, base: ModelSource, components: Components
) -> tuple[TextEncoder, ...]:
    """Returns those of a base that are its refiner's as well: all that this one has, or none."""
    # Without weights there is nothing to share.
    names = shared_text_encoders(source, base) if has_weights() else ()
    return tuple(one for one in components.text_encoders if one.name in names)


def _with_limits(info: ModelInfo, overrides: Mapping[str, int]) -> ModelInfo:
    return replace(info, limits=replace(info.limits, **overrides)) if overrides else info
