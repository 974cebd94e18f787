"""Loaded parts on their way to the device: checked, moved, laid out for speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentwire_server.models.components.component_set import Components

_CONVOLUTION_DIMENSIONS: Final = 4


def check_parts(parts: Components, *, source: str) -> None:
    """Checks the weights of every part.

    Raises:
        LoadError: a tensor is missing, or holds NaN or infinity.
    """
    for name, network in parts.networks.items():
        check_module(_of(network), name=name, source=source)


def check_module(module: torch.nn.Module, *, name: str, source: str) -> None:
    """Checks the weights of one part.

    Raises:
        LoadError: a tensor is missing, or holds NaN or infinity.
    """
    for key, tensor in module.state_dict().items():
        if tensor.is_meta:
            # What a single-file checkpoint lacks is left without storage.
            raise LoadError(source, f"{name} has no tensor {key}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoadError(source, f"{name} has NaN or infinity in {key}")


def place(parts: Components, *, device: torch.device, upcasts: bool) -> Components:
    """Moves the parts to the device, ready to compute.

    channels_last is faster wherever convolutions are: 24 % for Stable Diffusion 1.5's UNet and more
    than twofold for its autoencoder, on a CPU (measured).
    """
    if upcasts and parts.vae.dtype == torch.float16 and parts.vae.config.force_upcast:
        # It overflows in float16. The pipeline casts to and fro; the values are the same.
        _of(parts.vae).float()
    for network in parts.networks.values():
        _of(network).to(device).eval().requires_grad_(requires_grad=False)
    for network in (parts.unet, parts.vae):
        _in_channels_last(_of(network))
    return parts


def held_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Returns what the tensors of modules take; what is shared counts once."""
    tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def _of(module: object) -> torch.nn.Module:
    """Returns a component as the module that it is; its library's types do not say so."""
    return cast("torch.nn.Module", module)


def _in_channels_last(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() == _CONVOLUTION_DIMENSIONS:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
