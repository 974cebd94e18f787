"""How a UNet is called, compiled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class UnetInput(NamedTuple):
    """The input of a UNet; all on one device, latents and text of one dtype."""

    latents: torch.Tensor
    """(rows, channels, height, width), for inpainting with the mask and the masked image."""
    timesteps: torch.Tensor
    """(rows,) float32."""
    prompt_embeds: torch.Tensor
    """(rows, tokens, features)."""
    text_embeds: torch.Tensor | None = None
    """(rows, features), a summary of the prompt, for UNets that take one."""
    time_ids: torch.Tensor | None = None
    """(rows, numbers), such as the image's size, for the same UNets."""
    timestep_cond: torch.Tensor | None = None
    """(rows, features), the guidance scale, for UNets that take it as an input."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> UnetInput:
        """Returns the input with ``change`` applied to each tensor that is there."""
        return UnetInput._make(None if tensor is None else change(tensor) for tensor in self)


class Unet(Protocol):
    """A UNet, compiled or not."""

    def __call__(self, rows: UnetInput) -> torch.Tensor:
        """Returns (rows, channels, height, width)."""


class Compiler(Protocol):
    """Compiles a UNet. The caller must check the programs' results."""

    @property
    def takes_minutes(self) -> bool:
        """Whether a shape takes minutes to compile, rather than a second."""

    @property
    def program_bytes(self) -> int:
        """The approximate size of one program."""

    def for_any_shape(self, rows: UnetInput) -> Unet | None:
        """Returns a program for all shapes, if the compiler makes one; ``rows`` are an example."""

    def for_shape(self, rows: UnetInput) -> Unet | None:
        """Returns a program for the shape of ``rows`` alone; None if it would gain too little."""


def eager(unet: Callable[..., tuple[torch.Tensor, ...]]) -> Unet:
    """Returns diffusers' UNet as a ``Unet``, not compiled."""

    def call(rows: UnetInput) -> torch.Tensor:
        options: dict[str, object] = {}
        if rows.text_embeds is not None:
            added = {"text_embeds": rows.text_embeds, "time_ids": rows.time_ids}
            options["added_cond_kwargs"] = added
        if rows.timestep_cond is not None:
            options["timestep_cond"] = rows.timestep_cond
        return unet(
            rows.latents,
            rows.timesteps,
            encoder_hidden_states=rows.prompt_embeds,
            return_dict=False,
            **options,
        )[0]

    return call
