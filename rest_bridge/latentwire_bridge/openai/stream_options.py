"""What a caller asks of a stream of events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentwire_bridge.openai.answers import (
        CompletedImageEvent,
        PartialImageEvent,
        ProgressEvent,
        WarningEvent,
        WithheldEvent,
    )
    from latentwire_bridge.openai.schema import ImageRequest

    _Event = PartialImageEvent | CompletedImageEvent | ProgressEvent | WarningEvent | WithheldEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """How a generation is told while it is drawn."""

    is_edit: bool
    """Whether it began with a picture."""
    partial_images: int
    preview_interval_steps: int
    """Steps between two previews; 0: none."""
    wants_progress: bool
    keep_alive_s: float
    send_timeout_s: float
    """How long a reader may read nothing."""
    names_events: bool
    """Whether ``event:`` repeats the data's type."""

    @classmethod
    def of(
        cls,
        wanted: ImageRequest,
        *,
        is_edit: bool,
        num_steps: int,
        keep_alive_s: float,
        send_timeout_s: float,
        names_events: bool = True,
    ) -> Streaming:
        """Spreads the partial images evenly over the steps.

        Args:
            wanted: What the caller asked for.
            is_edit: Whether it begins with a picture.
            num_steps: How many steps it takes.
            keep_alive_s: How long the connection may be silent.
            send_timeout_s: How long the reader may read nothing.
            names_events: Whether the reader can be sent ``event:`` lines.
        """
        partial_images = wanted.body.partial_images or 0
        interval = 0
        if partial_images:
            parts = partial_images + 1
            even = (num_steps + parts // 2) // parts
            # The last step is the picture itself: where there are enough, all come before it.
            interval = max(1, min(even, (num_steps - 1) // partial_images))
        return cls(
            is_edit=is_edit,
            partial_images=partial_images,
            preview_interval_steps=interval,
            wants_progress=bool(wanted.body.progress),
            keep_alive_s=keep_alive_s,
            send_timeout_s=send_timeout_s,
            names_events=names_events,
        )
