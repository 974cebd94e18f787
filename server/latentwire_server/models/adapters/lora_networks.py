"""The adapters of a model: which ones fit, and the model's networks with some of them put in.

Adapters go into *twins*: networks of their own that share every weight with the model's, so that
the model itself stays as it is, bit for bit and in speed, compiled or not. Diffusers' loaders and
PEFT put them in; a set takes 0.1 s, and 0.25 s for each adapter, with Stable Diffusion 1.5's UNet
(measured, one core), beside whatever the device does meanwhile.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import safetensors.torch
import torch
from safetensors import SafetensorError

from latentwire_server.models.adapters.lora_file import LoraFile, checked, converted
from latentwire_server.models.components.library_lock import LIBRARY_LOCK
from latentwire_server.models.errors import LoraError
from latentwire_server.models.files.checked_files import digest
from latentwire_server.models.info import LoraInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from diffusers import UNet2DConditionModel
    from peft.tuners.lora.layer import LoraLayer
    from transformers import CLIPTextModel

    from latentwire_server.models.adapters.lora_file import LoraLoader
    from latentwire_server.models.components.component_set import Components

_LOGGER = logging.getLogger(__name__)

# Several adapters in one network are what is wanted here.
warnings.filterwarnings("ignore", message="Already found a `peft_config`")


class LoraStore:
    """The adapters that fit a model."""

    def __init__(
        self, paths: Sequence[tuple[str, Path]], parts: Components, *, loader: LoraLoader
    ) -> None:
        """Looks at the header of each file.

        Args:
            paths: ids with files that may be adapters of the model.
            parts: what the model is made of.
            loader: diffusers' pipeline class of the model's family.
        """
        self._loader = loader
        self._files: dict[str, LoraFile] = {}
        self.unfit: dict[str, str] = {}
        """Why others do not fit, by id."""
        networks = _adaptable(parts)
        for id_, path in paths:
            if id_ in self._files or id_ in self.unfit:
                _LOGGER.warning("adapter unused id=%s reason=another has this id", id_)
                continue
            try:
                self._files[id_] = checked(id_, path, networks=networks, loader=loader)
            except LoraError as error:
                self.unfit[id_] = error.reason
                # Of many models and adapters, few fit.
                _LOGGER.info("adapter unused id=%s reason=%s", id_, error.reason)
        itemsize = parts.unet.dtype.itemsize
        self.infos = tuple(
            LoraInfo(id=file.id, num_bytes=file.num_parameters * itemsize)
            for file in self._files.values()
        )

    def loaded(self, ids: Sequence[str], parts: Components) -> LoadedLoras:
        """Returns the parts' twins with adapters in them.

        Raises:
            LoraError: one cannot be used.
        """
        with LIBRARY_LOCK:
            twins = {name: _twin(network) for name, network in _adaptable(parts).items()}
            places = {id_: f"adapter{number}" for number, id_ in enumerate(ids)}
            for id_, place in places.items():
                self._put_in(self._files[id_], twins, adapter_name=place)
        for twin in twins.values():
            twin.eval().requires_grad_(requires_grad=False)
        return LoadedLoras(parts, twins, places=places)

    def _put_in(
        self, file: LoraFile, twins: Mapping[str, torch.nn.Module], *, adapter_name: str
    ) -> None:
        unet = twins["unet"]
        tensors = _tensors(file, like=next(unet.parameters()))
        state, alphas = converted(file.id, tensors, loader=self._loader, unet=unet)
        options = {
            "network_alphas": alphas,
            "adapter_name": adapter_name,
            "low_cpu_mem_usage": True,
        }
        try:
            for name, twin in twins.items():
                if not any(key.startswith(f"{name}.") for key in state):
                    continue
                said = {k: v for k, v in (file.metadata or {}).items() if k.startswith(f"{name}.")}
                if name == "unet":
                    self._loader.load_lora_into_unet(
                        state, unet=twin, metadata=said or None, **options
                    )
                else:
                    self._loader.load_lora_into_text_encoder(
                        state, text_encoder=twin, prefix=name, metadata=said or None, **options
                    )
        except Exception as error:  # Whatever a file makes three libraries do.
            _LOGGER.warning("adapter does not load id=%s", file.id, exc_info=True)
            reason = f"it does not load ({type(error).__name__})"
            raise LoraError(file.id, reason) from None
        if _num_parameters(twins.values(), adapter_name=adapter_name) != file.num_parameters:
            raise LoraError(file.id, "not all of it could be loaded")


class LoadedLoras:
    """Twins of a model's networks with adapters in them."""

    def __init__(
        self,
        parts: Components,
        twins: Mapping[str, torch.nn.Module],
        *,
        places: Mapping[str, str],
    ) -> None:
        """Takes the model's parts, their twins, and what each adapter is called in them, by id."""
        self._parts = parts
        networks = {name: _Scalable(twin) for name, twin in twins.items()}
        # Where no adapter went, the model's own network does.
        self._networks = {name: one for name, one in networks.items() if one.has_adapters}
        self._places = places

    def scaled(self, scales: Mapping[str, float]) -> Components:
        """Returns the parts with the adapters at these scales, by id."""
        by_place = {self._places[id_]: scale for id_, scale in scales.items()}
        scaled = {name: _Scaled(network, by_place) for name, network in self._networks.items()}
        return replace(
            self._parts,
            unet=cast("UNet2DConditionModel", scaled.get("unet", self._parts.unet)),
            text_encoders=tuple(
                encoder.with_module(cast("CLIPTextModel", scaled[encoder.name]))
                if encoder.name in scaled
                else encoder
                for encoder in self._parts.text_encoders
            ),
        )


class _Scalable:
    """A network whose adapters have one set of scales at a time."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._layers = _lora_layers(module)
        self._scales: Mapping[str, float] | None = None

    @property
    def has_adapters(self) -> bool:
        return bool(self._layers)

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Sets what diffusers' ``set_adapters`` sets: the active adapters, at their scales."""
        if scales == self._scales:
            return
        # Half set is not set.
        self._scales = None
        for layer in self._layers:
            layer.set_adapter(list(scales), inference_mode=True)
            for place, scale in scales.items():
                layer.set_scale(place, scale)
        self._scales = dict(scales)


class _Scaled:
    """A network that has its scales set before each call; for all else, the network."""

    def __init__(self, network: _Scalable, scales: Mapping[str, float]) -> None:
        self._network = network
        self._scales = scales

    def __call__(self, *args: object, **options: object) -> object:
        self._network.set_scales(self._scales)
        return cast("Callable[..., object]", self._network.module)(*args, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._network.module, name)


def _lora_layers(module: torch.nn.Module) -> list[LoraLayer]:
    from peft.tuners.lora.layer import LoraLayer  # noqa: PLC0415 - takes seconds to import

    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


def _num_parameters(networks: Iterable[torch.nn.Module], *, adapter_name: str) -> int:
    """Returns how many numbers an adapter has that are really there."""
    weights = [
        cast("Mapping[str, torch.nn.Linear]", half)[adapter_name].weight
        for network in networks
        for layer in _lora_layers(network)
        for half in (layer.lora_A, layer.lora_B)
        if adapter_name in set(half.keys())
    ]
    return sum(weight.numel() for weight in weights if not weight.is_meta)


def _adaptable(parts: Components) -> dict[str, torch.nn.Module]:
    return {
        "unet": cast("torch.nn.Module", parts.unet),
        **{one.name: cast("torch.nn.Module", one.module) for one in parts.text_encoders},
    }


def _twin(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a network of its own that shares every tensor."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def _tensors(file: LoraFile, *, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Reads a file that was looked at before; checks what the header does not tell."""
    try:
        if digest((file.path,), folder=file.path.parent) != file.digest:
            raise LoraError(file.id, "its file has changed since the server looked at it")
        tensors = safetensors.torch.load_file(file.path)
    except (OSError, SafetensorError):
        raise LoraError(file.id, "its file can no longer be read") from None
    placed = {}
    for name, tensor in tensors.items():
        cast_ = tensor.to(like.device, like.dtype)
        if not bool(torch.isfinite(cast_).all()):
            raise LoraError(file.id, "it has NaN or infinity")
        placed[name] = tensor if name.endswith(".alpha") else cast_
    return placed
