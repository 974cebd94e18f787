"""The engine's settings. Frozen values; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Batching(StrEnum):
    """The modes of filling denoiser calls."""

    DYNAMIC = "dynamic"
    """Calls as large as the work at hand: equal images within rounding."""
    REPRODUCIBLE = "reproducible"
    """Every call padded to ``max_rows``: the same bytes under any load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of the engine."""

    batching: Batching = Batching.DYNAMIC
    max_rows: int | None = None
    """Most rows in one denoiser call; None: the probed batch size, or 8 before it is probed."""
    max_queued: int = 64
    """Most generations that wait for their first step; further ones are refused."""
    max_running: int = 16
    """Most generations whose latents exist at once."""
    send_timeout_s: float = 120.0
    """How long to wait for a client that does not read its events."""
    queued_event_interval_s: float = 10.0
    """How often a waiting generation's queue position is sent, changed or not."""
    mask_feather: float = 4.0
    """Width in pixels, inside a mask's edge, over which the original fades into the new image."""
    lora_bytes: int = 2**30
    """Most bytes of LoRA adapters on the device, those in use included."""
    decode_interval_ticks: int = 1
    """Denoiser calls between two decodes, so that finishing images does not stall the others."""
