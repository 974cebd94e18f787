"""LoRAs as trainers write them: real safetensors files with random weights, in both formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latentwire_server.models.components.component_set import Components

STRENGTH = 0.3
"""The scale of the weights: enough for every LoRA to change every image visibly."""
_TRAINED = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
)


def write_diffusers(
    path: Path, parts: Components, *, seed: int, rank: int = 4, of: tuple[str, ...] = ("unet",)
) -> Path:
    """Writes a LoRA as diffusers' ``save_lora_weights`` does."""
    tensors = {}
    for network, layer, (down, up) in _pairs(parts, seed=seed, rank=rank, of=of):
        tensors[f"{network}.{layer}.lora_A.weight"] = down
        tensors[f"{network}.{layer}.lora_B.weight"] = up
    save_file(tensors, path)
    return path


def write_kohya(
    path: Path,
    parts: Components,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 2.0,
    of: tuple[str, ...] = ("unet", "text_encoder"),
) -> Path:
    """Writes a LoRA as kohya's trainer does: names with underscores, and an alpha each."""
    tensors = {}
    # One text encoder is "te", two are numbered.
    first = "lora_te1" if "text_encoder_2" in of else "lora_te"
    prefixes = {
        "unet": "lora_unet",
        "text_encoder": f"{first}_text_model",
        "text_encoder_2": "lora_te2_text_model",
    }
    for network, layer, (down, up) in _pairs(parts, seed=seed, rank=rank, of=of):
        layer_name = layer.removeprefix("text_model.").replace(".", "_")
        name = f"{prefixes[network]}_{layer_name}"
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    return path


def _pairs(
    parts: Components, *, seed: int, rank: int, of: tuple[str, ...]
) -> Iterator[tuple[str, str, tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return STRENGTH * torch.randn(shape, generator=generator)

    for network in of:
        for name, layer in parts.networks[network].named_modules():
            if isinstance(layer, torch.nn.Linear) and name.endswith(_TRAINED):
                yield (
                    network,
                    name,
                    (random(rank, layer.in_features), random(layer.out_features, rank)),
                )
