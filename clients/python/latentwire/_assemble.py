"""Turns one generation's messages into events: no gaps, images whole and verified.

Free of I/O, so that the sync and the asyncio client share it. One object per stream, used by one
reader at a time.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from latentwire._convert import event_from_proto, header_from_proto, image_from_proto
from latentwire._events import Completed
from latentwire.errors import CorruptStreamError

if TYPE_CHECKING:
    from latentwire._events import Event, Image
    from latentwire.v1 import image_generation_pb2 as pb


class StreamAssembler:
    """Assembles the events of one call from its messages, fed in order."""

    def __init__(self, request: pb.GenerateImageRequest) -> None:
        self._is_replay = request.resume_after_sequence > 0
        self._ends_after_accepted = request.validate_only
        self._next_sequence = request.resume_after_sequence + 1
        self._pending: pb.GenerateImageResponse | None = None
        """The message of an image whose bytes have not all arrived."""
        self._pending_data = bytearray()
        self._num_images = 0
        self._is_completed = False

    def feed(self, response: pb.GenerateImageResponse) -> Event | None:
        """Returns the event that a message completes, or None if it completes none.

        Raises:
            CorruptStreamError: The message contradicts the messages before it.
        """
        if response.sequence != self._next_sequence:
            msg = f"event {self._next_sequence} is missing: event {response.sequence} came instead"
            raise CorruptStreamError(msg)
        self._next_sequence += 1
        match response.WhichOneof("event"):
            case "image":
                self._require_no_pending_image()
                self._pending = response
                self._pending_data = bytearray(response.image.data)
                return self._whole_image()
            case "image_chunk":
                return self._continue_image(response.image_chunk)
            case _:
                event = event_from_proto(response)
        if isinstance(event, Completed):
            self._complete(event)
        return event

    def finish(self) -> None:
        """Checks that a stream that ended with OK was complete.

        Raises:
            CorruptStreamError: It ended too early.
        """
        if not self._is_completed and not self._ends_after_accepted:
            msg = "the stream ended without a completed event"
            raise CorruptStreamError(msg)

    def _continue_image(self, chunk: pb.ImageChunk) -> Image | None:
        if self._pending is None or chunk.image_index != self._pending.image.index:
            msg = f"a chunk of image {chunk.image_index} arrived without its image"
            raise CorruptStreamError(msg)
        if chunk.offset != len(self._pending_data):
            msg = (
                f"a chunk of image {chunk.image_index} starts at byte {chunk.offset}, "
                f"but {len(self._pending_data)} bytes have arrived"
            )
            raise CorruptStreamError(msg)
        self._pending_data += chunk.data
        return self._whole_image()

    def _whole_image(self) -> Image | None:
        """Returns the pending image, verified, once all its bytes have arrived."""
        response = self._pending
        if response is None or len(self._pending_data) < response.image.size_bytes:
            return None
        image = response.image
        data = bytes(self._pending_data)
        if len(data) > image.size_bytes:
            msg = f"image {image.index} has {len(data)} bytes instead of {image.size_bytes}"
            raise CorruptStreamError(msg)
        # An image that a filter withheld has no bytes and no digest.
        if (data or image.sha256) and hashlib.sha256(data).digest() != image.sha256:
            msg = f"image {image.index} does not match its SHA-256"
            raise CorruptStreamError(msg)
        self._pending = None
        self._pending_data = bytearray()
        self._num_images += 1
        return image_from_proto(image, data=data, header=header_from_proto(response))

    def _complete(self, completed: Completed) -> None:
        self._require_no_pending_image()
        if not self._is_replay and completed.image_count != self._num_images:
            msg = f"{self._num_images} images arrived, {completed.image_count} were sent"
            raise CorruptStreamError(msg)
        self._is_completed = True

    def _require_no_pending_image(self) -> None:
        if self._pending is not None:
            image = self._pending.image
            msg = (
                f"image {image.index} stopped after {len(self._pending_data)} "
                f"of {image.size_bytes} bytes"
            )
            raise CorruptStreamError(msg)
