"""Loads the parts of a single-file checkpoint, as Stable Diffusion was first published.

The file holds weights alone. Its configuration and tokenizer come from a diffusers folder or hub
repository: one that the operator names, or the origin that diffusers finds out and fetches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
from diffusers.loaders.single_file_utils import SingleFileComponentError

from latentwire_server.models.inspection import ALLOWED
from latentwire_server.models.source import LoadError
from latentwire_server.models.stable_diffusion import Components

if TYPE_CHECKING:
    import torch


def load_single_file(path: Path, *, config: str | None, dtype: torch.dtype) -> Components:
    """Loads a checkpoint that is known to be safetensors.

    Args:
        path: the checkpoint.
        config: a diffusers folder or hub id with its configuration and tokenizer.
        dtype: number format of the parts.

    Raises:
        LoadError: it is no such checkpoint, or its configuration cannot be had.
    """
    options: dict[str, object] = {"torch_dtype": dtype, "safety_checker": None}
    if config is not None:
        options["config"] = config
        options["local_files_only"] = Path(config).is_dir()
    failures = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
    try:
        pipeline = diffusers.StableDiffusionPipeline.from_single_file(str(path), **options)
    except (SingleFileComponentError, *failures) as error:
        reason = f"it does not load as a Stable Diffusion checkpoint ({type(error).__name__})"
        if config is None:
            reason += "; without the hub, single_file_config must name a folder with its settings"
        raise LoadError(str(path), reason) from error
    for name, allowed in ALLOWED.items():
        class_name = type(getattr(pipeline, name)).__name__
        if class_name not in {known for _, known in allowed}:
            raise LoadError(str(path), f"{name} is a {class_name}, which is not supported")
    return Components(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler_config=dict(pipeline.scheduler.config, _class_name=_scheduler_class(pipeline)),
    )


def _scheduler_class(pipeline: diffusers.StableDiffusionPipeline) -> str:
    return type(pipeline.scheduler).__name__
