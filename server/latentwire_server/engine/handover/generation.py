"""One generation: what its caller asked for, where it is in its life, and its channel.

The one object that both threads hold. Its state changes under a lock and by the table, so that of
a completion, a failure, a cancellation and a deadline that race exactly one takes effect.
Everything else about it is written by one thread and read as a plain value by the other.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latentwire_server.engine.events import Completed, FinishReason, Timings
from latentwire_server.engine.handover.lifecycle import GenerationEvent, is_ended, next_state
from latentwire_server.engine.policy.estimate import WorkLeft
from latentwire_server.engine.snapshots import GenerationSnapshot, GenerationState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentwire_server.engine.errors import GenerationError
    from latentwire_server.engine.events import Event, Image
    from latentwire_server.engine.handover.channel import Channel
    from latentwire_server.engine.policy.estimate import PhaseWork
    from latentwire_server.engine.request import GenerationRequest

_LOGGER = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Timestamps:
    """When a generation reached what, on the clock of ``time.monotonic()``."""

    accepted: float
    started: float | None = None
    encoded: float | None = None
    denoised: float | None = None
    ended: float | None = None

    def timings(self) -> Timings:
        """Returns where the time went so far; the parts add up to the total."""
        ended = time.monotonic() if self.ended is None else self.ended
        denoised = ended if self.denoised is None else self.denoised
        encoded = denoised if self.encoded is None else self.encoded
        started = encoded if self.started is None else self.started
        return Timings(
            queued_s=started - self.accepted,
            encoding_s=encoded - started,
            denoising_s=denoised - encoded,
            decoding_s=ended - denoised,
            total_s=ended - self.accepted,
        )


class Generation:
    """What a caller asked for, on its way."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        arrival: int,
        phases: Sequence[PhaseWork],
        on_change: Callable[[], None],
        waits_for_model: bool = False,
    ) -> None:
        self.request = request
        self.waits_for_model = waits_for_model
        """Whether its model must be loaded before the device thread hears of it. Event loop."""
        self.arrival = arrival
        self.timestamps = Timestamps(accepted=time.monotonic())
        self.create_time = time.time()
        self.end_time: float | None = None
        self.state = GenerationState.QUEUED
        self.step = 0
        self.fraction = 0.0
        self.phases = tuple(phases)
        self.evaluations_done = 0
        self._num_delivered = 0
        self._num_withheld = 0
        self._on_change = on_change
        self._lock = threading.Lock()
        self._channel: Channel | None = None

    @property
    def id(self) -> str:
        """The id that its caller knows it by."""
        return self.request.generation_id

    @property
    def is_ended(self) -> bool:
        """Whether nothing may be done for it any more."""
        return is_ended(self.state)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts generations as they leave the queue."""
        return (-self.request.priority, self.arrival)

    @property
    def work_left(self) -> WorkLeft:
        """The device work that it still needs."""
        return WorkLeft.of(
            self.phases,
            num_rows=self.request.num_rows,
            num_done=self.evaluations_done,
            num_decodes=self.request.num_images - self._num_delivered,
        )

    def attach(self, channel: Channel) -> None:
        """Gives it the channel that its events go through."""
        self._channel = channel

    def forget_pictures(self) -> None:
        """Gives back what it started from; to be called once it has ended."""
        if self.request.source is not None:
            source = self.request.source.without_pixels()
            self.request = replace(self.request, source=source)

    def publish(self, event: Event) -> None:
        """Tells its reader. Any thread; after the end nothing happens."""
        channel = self._channel
        if channel is not None:
            channel.publish(event)

    def start(self) -> bool:
        """Takes it out of the queue. Returns false if it ended meanwhile."""
        with self._lock:
            if self.is_ended:
                return False
            self.state = next_state(self.state, GenerationEvent.START)
            self.timestamps.started = time.monotonic()
        self._on_change()
        return True

    def deliver(self, image: Image) -> bool:
        """Publishes a finished image. Returns whether it was the last one."""
        with self._lock:
            self.publish(image)
            self._num_delivered += 1
            self._num_withheld += image.finish_reason is FinishReason.FILTERED
            return self._num_delivered == self.request.num_images

    def complete(self, *, peak_memory_bytes: int, model_revision: str) -> bool:
        """Ends it well. Returns false if it had ended otherwise."""
        if not self._end(GenerationEvent.COMPLETE):
            return False
        completed = Completed(
            image_count=self.request.num_images,
            timings=self.timestamps.timings(),
            peak_memory_bytes=peak_memory_bytes,
            model_revision=model_revision,
        )
        channel = self._detach()
        if channel is not None:
            channel.finish(completed)
        return True

    def fail(self, error: GenerationError) -> bool:
        """Ends it with an error of the server. Returns false if it had ended before."""
        return self._end_with(error, event=GenerationEvent.FAIL)

    def cancel(self, error: GenerationError) -> bool:
        """Ends it because nobody wants it any more. Returns false if it had ended before."""
        return self._end_with(error, event=GenerationEvent.CANCEL)

    def snapshot(self, *, ahead_count: int) -> GenerationSnapshot:
        """Returns it as it is right now. Any thread."""
        return GenerationSnapshot(
            request=self.request,
            state=self.state,
            create_time=self.create_time,
            end_time=self.end_time,
            ahead_count=ahead_count,
            step=self.step,
            fraction=self.fraction,
        )

    def _end_with(self, error: GenerationError, *, event: GenerationEvent) -> bool:
        if not self._end(event):
            return False
        channel = self._detach()
        if channel is not None:
            channel.fail(error)
        return True

    def _detach(self) -> Channel | None:
        # An ended generation is remembered for a while; what its reader left unread is not.
        channel, self._channel = self._channel, None
        return channel

    def _end(self, event: GenerationEvent) -> bool:
        with self._lock:
            after = next_state(self.state, event)
            if after is self.state:
                return False
            self.state = after
            self.timestamps.ended = time.monotonic()
            self.end_time = time.time()
            if after is GenerationState.SUCCEEDED:
                self.fraction = 1.0
        self._log_end()
        self._on_change()
        return True

    def _log_end(self) -> None:
        timings = self.timestamps.timings()
        _LOGGER.info(
            "generation ended generation_id=%s outcome=%s queued_s=%.3f total_s=%.3f steps=%d"
            " withheld=%d",
            self.id,
            self.state.value,
            timings.queued_s,
            timings.total_s,
            self.step,
            self._num_withheld,
        )
