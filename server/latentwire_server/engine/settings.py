"""The engine's settings. Frozen values; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Batching(StrEnum):
    """How denoiser calls are filled."""

    DYNAMIC = "dynamic"
    """Calls as large as the work at hand: equal pictures within rounding."""
    REPRODUCIBLE = "reproducible"
    """Every call padded to ``max_rows``: the same bytes under any load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the engine may be told."""

    batching: Batching = Batching.DYNAMIC
    max_rows: int | None = None
    """Most rows in one denoiser call; None: as many as pay, or 8 while nothing was measured."""
    max_queued: int = 64
    """Most generations that wait for their first step; one more is refused."""
    max_running: int = 16
    """Most generations whose latents exist at once."""
    send_timeout_s: float = 120.0
    """How long a client may read nothing while events wait for it."""
    queued_event_interval_s: float = 10.0
    """How often a waiting generation hears of its place, changed or not."""
    mask_feather: float = 4.0
    """Pixels inside a mask's edge over which what was drawn passes into what was kept."""
    lora_bytes: int = 2**30
    """Most that adapters take on the device, those in use among them."""
    decode_interval_ticks: int = 1
    """Denoiser calls between two decodes, so that finishing one image does not stall the others."""
