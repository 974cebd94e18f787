"""One generation: its request, its state, and the channel that its events go through.

The one object that both threads hold. Its state changes under a lock and by the table of its life
cycle, so that exactly one takes effect when completion, failure, cancellation and deadline race.
Every other attribute is written by one thread and read as a plain value by the other.
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
    """The times at which a generation reached its stages, on the clock of ``time.monotonic()``."""

    accepted: float
    started: float | None = None
    encoded: float | None = None
    denoised: float | None = None
    ended: float | None = None

    def timings(self) -> Timings:
        """Returns the time spent in each stage so far; the parts add up to the total."""
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
    """One request on its way from the queue to its images."""

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
        """Whether its model must be loaded before it enters the inbox. Event loop."""
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
        """The id by which its caller refers to it."""
        return self.request.generation_id

    @property
    def is_ended(self) -> bool:
        """Whether it has succeeded, failed or been cancelled, so that no more work may be done."""
        return is_ended(self.state)

    @property
    def order(self) -> tuple[int, int]:
        """The key that sorts generations as they leave the queue."""
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
        """Sets the channel for its events."""
        self._channel = channel

    def drop_source_pixels(self) -> None:
        """Frees the pixels of its source; to be called once it has ended."""
        if self.request.source is not None:
            source = self.request.source.without_pixels()
            self.request = replace(self.request, source=source)

    def publish(self, event: Event) -> None:
        """Sends an event to its reader. Any thread; does nothing after the end."""
        channel = self._channel
        if channel is not None:
            channel.publish(event)

    def start(self) -> bool:
        """Marks it as running. Returns false if it has ended meanwhile."""
        with self._lock:
            if self.is_ended:
                return False
            self.state = next_state(self.state, GenerationEvent.START)
            self.timestamps.started = time.monotonic()
        self._on_change()
        return True

    def deliver(self, image: Image) -> bool:
        """Publishes a finished image. Returns whether it is the last one."""
        with self._lock:
            self.publish(image)
            self._num_delivered += 1
            self._num_withheld += image.finish_reason is FinishReason.FILTERED
            return self._num_delivered == self.request.num_images

    def complete(self, *, peak_memory_bytes: int, model_revision: str) -> bool:
        """Ends it with success. Returns false if it has ended before."""
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
        """Ends it with an error. Returns false if it has ended before."""
        return self._end_with(error, event=GenerationEvent.FAIL)

    def cancel(self, error: GenerationError) -> bool:
        """Ends it because it is no longer wanted. Returns false if it has ended before."""
        return self._end_with(error, event=GenerationEvent.CANCEL)

    def snapshot(self, *, ahead_count: int) -> GenerationSnapshot:
        """Returns its current state. Any thread."""
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
        # An ended generation is remembered for a while, without the events its reader left unread.
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
