"""Checks from its header whether a LoRA file fits a model's networks, before any of it is loaded.

A LoRA file is untrusted. Only safetensors is read, recognised by its content. Diffusers' own
converters translate the names of its tensors, on tensors without storage; then each tensor must be
one half of a pair that fits a layer. Loading threads only.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

import torch
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open

from latentwire_server.models.errors import LoadError, LoraError
from latentwire_server.models.files.checked_files import check_safetensors, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MAX_FILE_BYTES: Final = 4 * 2**30
MAX_TENSORS: Final = 20_000
MAX_RANK: Final = 1024
_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_OTHER_KINDS: Final = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with Tucker decomposition",
    "oft_": "OFT",
    "boft_": "BOFT",
    ".diff": "a difference of weights",
    "lora_embedding": "LoRA of embeddings",
}
"""Parts of tensor names that show another kind of adapter than LoRA."""
_PAIR: Final = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
_METADATA: Final = "lora_adapter_metadata"
"""Where diffusers writes how a LoRA was made."""
_METADATA_KEPT: Final = {
    "r": int,
    "lora_alpha": (int, float),
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "target_modules": list,
}
_METADATA_REFUSED: Final = ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "alora_")
"""Settings that would make the adapter compute in another way."""

Converted = tuple[dict[str, torch.Tensor], dict[str, float] | None]


class LoraLoader(Protocol):
    """The part of a diffusers pipeline that loads LoRAs: ``StableDiffusionLoraLoaderMixin``, ..."""

    @staticmethod
    def lora_state_dict(
        pretrained_model_name_or_path_or_dict: dict[str, torch.Tensor], *, unet_config: object
    ) -> Converted:
        """Returns a file's tensors under diffusers' names, and kohya's alphas."""

    @staticmethod
    def load_lora_into_unet(state_dict: object, **options: object) -> None:
        """Loads a LoRA into a UNet."""

    @staticmethod
    def load_lora_into_text_encoder(state_dict: object, **options: object) -> None:
        """Loads a LoRA into a text encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA file that fits a model."""

    id: str
    path: Path
    digest: str
    num_parameters: int
    metadata: Mapping[str, object] | None
    """How it was made: the part that is safe to pass to diffusers."""


def check_lora(
    id_: str, path: Path, *, networks: Mapping[str, torch.nn.Module], loader: LoraLoader
) -> LoraFile:
    """Checks that a file fits the networks.

    Args:
        id_: Its id in requests.
        path: The file.
        networks: The networks that it may change, by name: ``"unet"`` and text encoders.
        loader: The family's loader.

    Raises:
        LoraError: the file does not fit, or is no LoRA file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LoraError(id_, f"it is larger than {MAX_FILE_BYTES} bytes")
        check_safetensors(path, source=id_)
        with safe_open(path, framework="pt") as file:
            tensors = _meta_tensors(id_, file)
            metadata = _safe_metadata(id_, (file.metadata() or {}).get(_METADATA))
    except LoadError as error:
        raise LoraError(id_, error.reason) from None
    except (OSError, SafetensorError):
        raise LoraError(id_, "it cannot be read as safetensors") from None
    state, alphas = convert_names(id_, tensors, loader=loader, unet=networks["unet"])
    if metadata is not None and alphas:
        raise LoraError(id_, "it has alphas both as tensors and as metadata")
    _check_fits(id_, state, networks)
    return LoraFile(
        id=id_,
        path=path,
        digest=digest((path,), folder=path.parent),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        metadata=metadata,
    )


def convert_names(
    id_: str, tensors: dict[str, torch.Tensor], *, loader: LoraLoader, unet: torch.nn.Module
) -> Converted:
    """Returns tensors under diffusers' names, and kohya's alphas.

    Raises:
        LoraError: the names are not those of a LoRA.
    """
    try:
        return loader.lora_state_dict(tensors, unet_config=unet.config)
    except Exception as error:  # Names can make diffusers' converters raise anything.
        reason = f"its tensors are not named as a LoRA's ({type(error).__name__})"
        raise LoraError(id_, reason) from None


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _File(Protocol):
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def _meta_tensors(id_: str, file: _File) -> dict[str, torch.Tensor]:
    """Returns the file's tensors without storage, except for single numbers, which are read."""
    names = list(file.keys())
    if not 0 < len(names) <= MAX_TENSORS:
        raise LoraError(id_, f"it has {len(names)} tensors; allowed: 1 to {MAX_TENSORS}")
    tensors = {}
    for name in names:
        for mark, kind in _OTHER_KINDS.items():
            if mark in name:
                raise LoraError(id_, f"it is {kind}, which is not supported; LoRA is")
        tensor = file.get_slice(name)
        shape, dtype = tensor.get_shape(), _DTYPES.get(tensor.get_dtype())
        if dtype is None:
            allowed = ", ".join(_DTYPES)
            raise LoraError(id_, f"{_shown(name)} is {tensor.get_dtype()}; allowed: {allowed}")
        is_number = math.prod(shape) == 1
        if is_number:
            tensors[name] = file.get_tensor(name)
            if not math.isfinite(tensors[name].item()):
                raise LoraError(id_, f"{_shown(name)} is NaN or infinity")
        else:
            tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
    return tensors


def _check_fits(
    id_: str, state: Mapping[str, torch.Tensor], networks: Mapping[str, torch.nn.Module]
) -> None:
    foreign = [key for key in state if key.split(".")[0] not in networks]
    if foreign:
        raise LoraError(id_, f"{_shown(foreign[0])} is for no network of the model")
    for name, network in networks.items():
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)
        }
        if own:
            _check_network(id_, name, network, own)


def _check_network(
    id_: str, name: str, network: torch.nn.Module, own: dict[str, torch.Tensor]
) -> None:
    if name == "unet":
        named = own if "lora_A" in next(iter(own)) else _peft(convert_unet_state_dict_to_peft, own)
    else:
        named = _peft(convert_state_dict_to_peft, _peft(convert_state_dict_to_diffusers, own))
        if not hasattr(network, "text_model"):
            # transformers 5 has the layers on the model itself.
            named = {key.removeprefix("text_model."): tensor for key, tensor in named.items()}
    layers = dict(network.named_modules())
    halves: dict[str, dict[str, torch.Size]] = {}
    for key, tensor in named.items():
        match = _PAIR.fullmatch(key)
        if match is None or match["layer"] not in layers:
            raise LoraError(id_, f"{name} has no layer for {_shown(key)}")
        halves.setdefault(match["layer"], {})[match["half"]] = tensor.shape
    for layer, shapes in halves.items():
        problem = _misfit(layers[layer], shapes)
        if problem is not None:
            raise LoraError(id_, f"{name}.{_shown(layer)}: {problem}")


def _misfit(layer: torch.nn.Module, shapes: Mapping[str, torch.Size]) -> str | None:
    """Returns why a pair does not fit a layer, or None if it fits."""
    if set(shapes) != {"A", "B"}:
        return "one half of the pair is missing"
    down, up = tuple(shapes["A"]), tuple(shapes["B"])
    match layer:
        case torch.nn.Linear():
            rest_down: tuple[int, ...] = (layer.in_features,)
            rest_up: tuple[int, ...] = ()
            num_out = layer.out_features
        case torch.nn.Conv2d(groups=1):
            rest_down = (layer.in_channels, *layer.kernel_size)
            rest_up, num_out = (1, 1), layer.out_channels
        case _:
            return f"a {type(layer).__name__} takes no LoRA"
    rank = down[0] if down else 0
    if not 1 <= rank <= MAX_RANK:
        return f"its rank is {rank}; allowed: 1 to {MAX_RANK}"
    if down != (rank, *rest_down) or up != (num_out, rank, *rest_up):
        return (
            f"{list(down)} and {list(up)} do not fit; needed:"
            f" {[rank, *rest_down]} and {[num_out, rank, *rest_up]}"
        )
    return None


def _peft(
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    state: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    try:
        return convert(dict(state))
    except (KeyError, ValueError, IndexError):
        # Not a known naming: no layer will be found for the names.
        return state


def _safe_metadata(id_: str, text: str | None) -> dict[str, object] | None:
    """Returns the metadata that is safe to pass to diffusers; the rest could run code."""
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise LoraError(id_, f"its {_METADATA} is not a JSON object")
    kept: dict[str, object] = {}
    for key, value in content.items():
        name = str(key).rpartition(".")[2]
        if name.startswith(_METADATA_REFUSED) and value:
            raise LoraError(id_, f"it was made with {name}, which is not supported")
        if name in _METADATA_KEPT:
            if not isinstance(value, cast("type", _METADATA_KEPT[name])) or not _is_valid(value):
                raise LoraError(id_, f"its {_METADATA} has an invalid {name}")
            kept[key] = value
    return kept


def _is_valid(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    if isinstance(value, dict):
        # PEFT treats the keys as regular expressions.
        are_layers = all(re.fullmatch(r"\^?[\w.]+", str(key)) for key in value)
        return are_layers and all(_is_valid(one) for one in value.values())
    return isinstance(value, int | float) and 0 < value < math.inf


def _shown(name: str) -> str:
    return ascii(name[:100])
