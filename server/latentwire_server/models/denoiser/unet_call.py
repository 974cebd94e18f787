"""How a UNet is called, however it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class UnetInput(NamedTuple):
    """What a UNet is called with; all of one device, latents and text of one dtype."""

    latents: torch.Tensor
    """(rows, channels, height, width), with what the UNet sees beside them."""
    timesteps: torch.Tensor
    """(rows,) float32."""
    prompt_embeds: torch.Tensor
    """(rows, tokens, features)."""
    text_embeds: torch.Tensor | None = None
    """(rows, features), a summary of the prompt, for UNets that take one."""
    time_ids: torch.Tensor | None = None
    """(rows, numbers), such as the picture's size, for the same UNets."""
    timestep_cond: torch.Tensor | None = None
    """(rows, features), the guidance scale, for UNets that are told."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> UnetInput:
        """Returns the input with each tensor changed that the UNet takes."""
        return UnetInput._make(None if tensor is None else change(tensor) for tensor in self)


class Unet(Protocol):
    """A UNet, however it is run."""

    def __call__(self, rows: UnetInput) -> torch.Tensor:
        """Returns (rows, channels, height, width)."""


class Compiler(Protocol):
    """Compiles a UNet. What it returns may be off: whoever asks compares."""

    @property
    def takes_minutes(self) -> bool:
        """Whether a shape takes minutes to compile, and not a second."""

    @property
    def program_bytes(self) -> int:
        """What each of its programs takes, about."""

    def for_any_shape(self, rows: UnetInput) -> Unet | None:
        """Returns what takes any shape, if there is such a thing; ``rows`` are an example."""

    def for_shape(self, rows: UnetInput) -> Unet | None:
        """Returns what takes only the shape of ``rows``, or None where that gains too little."""


def eager(unet: Callable[..., tuple[torch.Tensor, ...]]) -> Unet:
    """Returns the UNet as it is."""

    def call(rows: UnetInput) -> torch.Tensor:
        told: dict[str, object] = {}
        if rows.text_embeds is not None:
            added = {"text_embeds": rows.text_embeds, "time_ids": rows.time_ids}
            told["added_cond_kwargs"] = added
        if rows.timestep_cond is not None:
            told["timestep_cond"] = rows.timestep_cond
        return unet(
            rows.latents,
            rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            return_dict=False,
            **told,
        )[0]

    return call
