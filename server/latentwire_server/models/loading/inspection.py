"""What may be read from a model folder: decided by its content, before anything is loaded.

A model folder is somebody else's data. Only safetensors weights are read, identified by their
header and not by their name; components are built from a list of known classes; nothing in it is
executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from latentwire_server.models.architectures.family import TOKENIZERS
from latentwire_server.models.errors import LoadError
from latentwire_server.models.families import FAMILIES
from latentwire_server.models.files.checked_files import PICKLES, check_safetensors
from latentwire_server.models.loading.folder_settings import PREVIEW_FILE, SETTINGS_FILE
from latentwire_server.models.schedulers.sampler_table import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from latentwire_server.models.architectures.family import Family, TextEncoderKind
    from latentwire_server.models.files.checked_files import CheckedFiles

VAES: Final = ("AutoencoderKL", "AutoencoderTiny")
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}$")
"""The end of the names of a large component's files, before the suffix."""
_UNETS: Final = ("UNet2DConditionModel",)

SAFETY: Final = {
    "safety_checker": {("stable_diffusion", "StableDiffusionSafetyChecker")},
    "feature_extractor": {
        ("transformers", "CLIPImageProcessor"),
        ("transformers", "CLIPImageProcessorFast"),
        ("transformers", "CLIPImageProcessorPil"),
        # What it was called when Stable Diffusion 1.x was published.
        ("transformers", "CLIPFeatureExtractor"),
    },
}
"""The components of a safety checker, which a model may bring, and their classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineIndex:
    """What a folder's ``model_index.json`` says, found to be of classes that are built here."""

    family: Family
    text_encoders: tuple[TextEncoderKind, ...]
    vae: str
    """The autoencoder's class."""
    options: Mapping[str, bool]

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        return (*(kind.name for kind in self.text_encoders), "unet", "vae")


def checked_index(index: Mapping[str, object], *, source: str) -> PipelineIndex:
    """Returns what a ``model_index.json`` says.

    Raises:
        LoadError: it names a pipeline or a component of a class that is not built here.
    """
    pipeline = index.get("_class_name")
    family = next((one for one in FAMILIES if pipeline in one.pipelines), None)
    if family is None:
        known = ", ".join(name for one in FAMILIES for name in one.pipelines)
        reason = f"pipeline class {pipeline!r} is not supported; supported: {known}"
        raise LoadError(source, reason)
    encoders = family.present(index)
    for name, (library, classes) in allowed_classes(encoders).items():
        entry = index.get(name)
        if entry not in [[library, class_name] for class_name in classes]:
            known = ", ".join(sorted(classes))
            raise LoadError(source, f"{name} is {entry!r}; supported: {known}")
    options = {name: index.get(name, default) for name, default in family.options.items()}
    for name, value in options.items():
        if not isinstance(value, bool):
            raise LoadError(source, f"{name} is {value!r}; supported: true, false")
    return PipelineIndex(
        family=family,
        text_encoders=encoders,
        vae=cast("list[str]", index["vae"])[1],
        options=cast("dict[str, bool]", options),
    )


def has_safety_checker(index: Mapping[str, object], *, source: str) -> bool:
    """Returns whether a ``model_index.json`` names a safety checker.

    Raises:
        LoadError: it names one of a class that is not built here.
    """
    if index.get("safety_checker") in (None, [None, None]):
        return False
    for name, allowed in SAFETY.items():
        if index.get(name) not in [list(pair) for pair in allowed]:
            known = ", ".join(sorted(class_name for _, class_name in allowed))
            reason = f"{name} is {index.get(name)!r}; supported: {known}"
            raise LoadError(source, f"{reason}; safety_checker=false serves without")
    return True


def allowed_classes(
    text_encoders: Sequence[TextEncoderKind],
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns for each component the library and the classes of it that we build."""
    allowed: dict[str, tuple[str, tuple[str, ...]]] = {}
    for kind in text_encoders:
        allowed[kind.tokenizer] = ("transformers", TOKENIZERS)
        allowed[kind.name] = ("transformers", (kind.class_name,))
    schedulers = tuple(kind.class_name for kind in SCHEDULERS.values())
    return {
        **allowed,
        "unet": ("diffusers", _UNETS),
        "vae": ("diffusers", VAES),
        "scheduler": ("diffusers", schedulers),
    }


def downloaded_patterns(
    *, variant: str | None, with_safety_checker: bool
) -> tuple[list[str], list[str]]:
    """Returns which files of a hub repository are wanted, and which of those are not.

    Patterns as ``huggingface_hub`` takes them, in which ``*`` crosses folders. A repository often
    holds every variant of every component, and checkpoints of the whole beside them: of Stable
    Diffusion 1.5's some 40 GB, a tenth is used.
    """
    names = ("*.json", "*.txt", "*.safetensors" if variant is None else f"*.{variant}*.safetensors")
    wanted = ["model_index.json", SETTINGS_FILE, PREVIEW_FILE]
    # Which family it is, is known only once it is here.
    kinds = [kind for family in FAMILIES for kind in family.text_encoders]
    components = [*allowed_classes(kinds), *(SAFETY if with_safety_checker else ())]
    wanted += [f"{component}/{name}" for component in components for name in names]
    # The index of shards that are not fetched would name files that are not there.
    if variant is not None:
        return wanted, ["*/*/*", "*.safetensors.index.json"]
    # A variant's name stands before the suffix, or before the number of a shard.
    variants = ["*.*.safetensors", "*.*-?????-of-?????.safetensors", "*.safetensors.index.*.json"]
    return wanted, ["*/*/*", *variants]


def autoencoder_patterns() -> list[str]:
    """Returns which files of a hub repository are wanted that holds an autoencoder."""
    names = ("config.json", "diffusion_pytorch_model*.safetensors*")
    return [*names, *(f"vae/{name}" for name in names)]


def refuse_outside(folder: Path, *, root: Path) -> None:
    """Refuses links from a folder to anything outside of ``root``."""
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root.resolve()):
            raise LoadError(str(folder), f"{path.name} is a link that leads out of the folder")


def find_weights(folder: Path, component: str, *, variant: str | None) -> list[Path]:
    """Returns the files with a component's weights, each found to be safetensors.

    Raises:
        LoadError: there are none, or one is something else.
    """
    files = sorted((folder / component).glob("*"))
    checkable = [path for path in files if path.suffix == ".safetensors"]
    found = checkable
    if variant is None:
        variants = sorted({_SHARD.sub("", path.stem).partition(".")[2] for path in checkable})
        if variants and "" not in variants:
            only = f"weights of the variant {' or '.join(variants)} only"
            raise LoadError(str(folder), f"{component} has {only}; set variant")
    else:
        # A shard's name goes on with its number: model.fp16-00001-of-00002.safetensors.
        marks = (f".{variant}.", f".{variant}-")
        found = [path for path in checkable if any(mark in path.name for mark in marks)]
    if not found:
        pickles = [path.name for path in files if path.suffix.lower() in PICKLES]
        reason = f"{component} has no .safetensors weights"
        if variant is not None:
            reason += f" of variant {variant!r}"
        if pickles:
            reason += f"; {pickles[0]} is a pickle, which can run code, and is never read"
        raise LoadError(str(folder), reason)
    for path in checkable:
        check_safetensors(path, source=str(folder))
    return found


def refuse_detours(folder: Path, component: str, *, files: CheckedFiles) -> None:
    """Refuses settings that would make the libraries read other weights than the checked ones.

    An index of shards may name any file, a pickle too, which both libraries then unpickle although
    they are told to use safetensors; an adapter may name a hub repository.
    """
    source, place = str(folder), folder / component
    if (place / "adapter_config.json").exists():
        raise LoadError(source, f"{component} is an adapter, which is not supported")
    config = files.json(place / "config.json", source=source)
    for key in ("transformers_weights", "quantization_config"):
        if config.get(key) is not None:
            raise LoadError(source, f"{component} has {key} in config.json, which is not supported")
    known = {path.name for path in place.glob("*.safetensors")}
    for index in sorted(place.glob("*.safetensors.index*.json")):
        shards = files.json(index, source=source).get("weight_map")
        named = shards.values() if isinstance(shards, dict) else [None]
        strange = [repr(name) for name in named if not isinstance(name, str) or name not in known]
        if strange:
            reason = f"{component}/{index.name} names {strange[0]}, which is no weights file there"
            raise LoadError(source, reason)
