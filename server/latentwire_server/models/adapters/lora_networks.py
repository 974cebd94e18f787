"""The LoRAs that fit a model, and twins of the model's networks with some of them loaded.

LoRAs are loaded into *twins*: networks of their own that share every weight with the model's, so
that the model itself stays unchanged, bit for bit and in speed, compiled or not. Diffusers' loaders
and PEFT load them; a set takes 0.1 s plus 0.25 s per LoRA with Stable Diffusion 1.5's UNet
(measured, one core), beside whatever the device computes meanwhile.
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

from latentwire_server.models.adapters.lora_file import LoraFile, check_lora, convert_names
from latentwire_server.models.components.component_set import LIBRARY_LOCK
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
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import DiffusionModel

_LOGGER = logging.getLogger(__name__)

# PEFT warns about several LoRAs in one network, which are intended here.
warnings.filterwarnings("ignore", message="Already found a `peft_config`")


class LoraStore:
    """The LoRAs that fit a model. Created on a loading thread; ``load`` may run on any."""

    def __init__(
        self, paths: Sequence[tuple[str, Path]], parts: Components, *, loader: LoraLoader
    ) -> None:
        """Checks the header of each file.

        Args:
            paths: Ids and files of LoRAs that may fit the model.
            parts: The model's parts.
            loader: Diffusers' pipeline class of the model's family.
        """
        self._loader = loader
        self._files: dict[str, LoraFile] = {}
        self.unfit: dict[str, str] = {}
        """Why the other files do not fit, by id."""
        networks = _adaptable(parts)
        for id_, path in paths:
            if id_ in self._files or id_ in self.unfit:
                _LOGGER.warning("LoRA not used id=%s reason=another one has this id", id_)
                continue
            try:
                self._files[id_] = check_lora(id_, path, networks=networks, loader=loader)
            except LoraError as error:
                self.unfit[id_] = error.reason
                # Not a warning: with many models and LoRAs, few fit.
                _LOGGER.info("LoRA not used id=%s reason=%s", id_, error.reason)
        itemsize = parts.unet.dtype.itemsize
        self.infos = tuple(
            LoraInfo(id=file.id, num_bytes=file.num_parameters * itemsize)
            for file in self._files.values()
        )

    def listed_in(self, info: ModelInfo) -> ModelInfo:
        """Returns the model's description with these LoRAs."""
        capabilities = (*info.capabilities, "lora") if self.infos else info.capabilities
        return replace(info, capabilities=capabilities, loras=self.infos, unfit_loras=self.unfit)

    def load(
        self,
        ids: Sequence[str],
        parts: Components,
        *,
        make_model: Callable[[Components], DiffusionModel],
    ) -> LoadedLoras:
        """Loads LoRAs into twins of a model's networks.

        Args:
            ids: The LoRAs.
            parts: The model's parts, which stay unchanged.
            make_model: Makes a model of parts with LoRAs.

        Raises:
            LoraError: one of them cannot be used.
        """
        with LIBRARY_LOCK:
            networks = _adaptable(parts)
            for name, network in networks.items():
                if name != "unet":
                    _install_hooks(network)
            twins = {name: _twin(network) for name, network in networks.items()}
            places = {id_: f"adapter{number}" for number, id_ in enumerate(ids)}
            for id_, place in places.items():
                self._load_into(twins, self._files[id_], adapter_name=place)
        for twin in twins.values():
            twin.eval().requires_grad_(requires_grad=False)
        return LoadedLoras(parts, twins, places=places, make_model=make_model)

    def _load_into(
        self, twins: Mapping[str, torch.nn.Module], file: LoraFile, *, adapter_name: str
    ) -> None:
        unet = twins["unet"]
        tensors = _read_tensors(file, like=next(unet.parameters()))
        state, alphas = convert_names(file.id, tensors, loader=self._loader, unet=unet)
        options: dict[str, object] = {
            "network_alphas": alphas,
            "adapter_name": adapter_name,
            "low_cpu_mem_usage": True,
        }
        try:
            for name, twin in twins.items():
                if not any(key.startswith(f"{name}.") for key in state):
                    continue
                metadata = {
                    key: value
                    for key, value in (file.metadata or {}).items()
                    if key.startswith(f"{name}.")
                }
                options["metadata"] = metadata or None
                if name == "unet":
                    self._loader.load_lora_into_unet(state, unet=twin, **options)
                else:
                    self._loader.load_lora_into_text_encoder(
                        state, text_encoder=twin, prefix=name, **options
                    )
        except Exception as error:  # A file can make three libraries raise anything.
            _LOGGER.warning("LoRA does not load id=%s", file.id, exc_info=True)
            reason = f"it does not load ({type(error).__name__})"
            raise LoraError(file.id, reason) from None
        if _num_parameters(twins.values(), adapter_name=adapter_name) != file.num_parameters:
            raise LoraError(file.id, "only a part of it could be loaded")


class LoadedLoras:
    """Implements ``AdapterSet`` with twins of a model's networks."""

    def __init__(
        self,
        parts: Components,
        twins: Mapping[str, torch.nn.Module],
        *,
        places: Mapping[str, str],
        make_model: Callable[[Components], DiffusionModel],
    ) -> None:
        """Wraps twins with LoRAs; ``places`` are PEFT's names for them, by id."""
        self._parts = parts
        networks = {name: _Scalable(twin) for name, twin in twins.items()}
        # A network without LoRAs needs no twin.
        self._networks = {name: one for name, one in networks.items() if one.has_adapters}
        self._places = places
        self._make_model = make_model

    def scaled(self, scales: Mapping[str, float]) -> DiffusionModel:
        """Returns the model with its LoRAs at these scales, by id."""
        by_place = {self._places[id_]: scale for id_, scale in scales.items()}
        scaled = {name: _Scaled(network, by_place) for name, network in self._networks.items()}
        parts = replace(
            self._parts,
            unet=cast("UNet2DConditionModel", scaled.get("unet", self._parts.unet)),
            text_encoders=tuple(
                encoder.with_module(cast("CLIPTextModel", scaled[encoder.name]))
                if encoder.name in scaled
                else encoder
                for encoder in self._parts.text_encoders
            ),
        )
        return self._make_model(parts)


class _Scalable:
    """A network whose LoRAs have one set of scales at a time."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._layers = _lora_layers(module)
        self._scales: Mapping[str, float] | None = None

    @property
    def has_adapters(self) -> bool:
        return bool(self._layers)

    def set_scales(self, scales: Mapping[str, float]) -> None:
        """Activates LoRAs at these scales, as diffusers' ``set_adapters`` does."""
        if scales == self._scales:
            return
        # An error below leaves the scales unknown.
        self._scales = None
        for layer in self._layers:
            layer.set_adapter(list(scales), inference_mode=True)
            for place, scale in scales.items():
                layer.set_scale(place, scale)
        self._scales = dict(scales)


class _Scaled:
    """A network that sets its scales before each call; otherwise like the network itself."""

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
    """Returns the number of a LoRA's parameters that were really loaded."""
    weights = [
        cast("Mapping[str, torch.nn.Linear]", half)[adapter_name].weight
        for network in networks
        for layer in _lora_layers(network)
        for half in (layer.lora_A, layer.lora_B)
        if adapter_name in set(half.keys())
    ]
    return sum(weight.numel() for weight in weights if not weight.is_meta)


def _adaptable(parts: Components) -> dict[str, torch.nn.Module]:
    return {name: network for name, network in parts.networks.items() if name != "vae"}


@torch.inference_mode()
def _install_hooks(text_encoder: torch.nn.Module) -> None:
    """Makes transformers install the hooks that collect a text encoder's hidden states.

    It does so in the first call that wants them, under a lock of its own. A twin that is copied
    meanwhile, with some of the hooks, gets these twice: it collects more states than there are
    layers, and another one than the last but one is taken.
    """
    token = torch.zeros((1, 1), dtype=torch.long, device=next(text_encoder.parameters()).device)
    text_encoder(token, output_hidden_states=True)


def _twin(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy of the network that shares every tensor with it."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def _read_tensors(file: LoraFile, *, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Reads a file whose header was checked before; checks that its values are finite."""
    try:
        if digest((file.path,), folder=file.path.parent) != file.digest:
            raise LoraError(file.id, "its file has changed since the server checked it")
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
