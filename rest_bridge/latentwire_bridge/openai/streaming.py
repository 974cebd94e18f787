"""Images as server-sent events (WHATWG HTML, 9.2), as OpenAI's clients read them.

Those clients break on an ``id:`` or ``retry:`` line and on events without data, take every type
that they do not know for a partial image, and lose a last event without its blank line. Comments
are safe.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import TYPE_CHECKING, Final

from PIL import Image as PillowImage

from latentwire import Completed, Image, LatentwireError, Preview, Progress
from latentwire_bridge.openai.errors import all_withheld, envelope
from latentwire_bridge.openai.responses import (
    format_of,
    quality_told,
    revised_prompt,
    usage_of,
    warnings_of,
    withheld_warning,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web

    from latentwire import Accepted, Event
    from latentwire_bridge.openai.answers import (
        CompletedImageEvent,
        ErrorAnswer,
        OutputFormat,
        PartialImageEvent,
        ProgressEvent,
        WarningAnswer,
        WarningEvent,
        WithheldEvent,
    )
    from latentwire_bridge.openai.errors import ApiError
    from latentwire_bridge.openai.schema import ImageRequest
    from latentwire_bridge.openai.stream_options import Streaming

    _Event = PartialImageEvent | CompletedImageEvent | ProgressEvent | WarningEvent | WithheldEvent

CONTENT_TYPE: Final = "text/event-stream"
_KEEP_ALIVE: Final = b": still drawing\n\n"
_NAME: Final = b"event: "


async def send_events(
    response: web.StreamResponse,
    events: AsyncIterator[Event],
    *,
    streaming: Streaming,
    wanted: ImageRequest,
    accepted: Accepted | None,
    error_of: Callable[[LatentwireError], ApiError],
) -> Completed | None:
    """Sends the warnings and what follows them, an error too; returns how it ended, None if badly.

    Event loop. Waits for a slow reader, but not for ever.

    Args:
        response: Where they go; its headers are sent.
        events: The generation.
        streaming: How it is told.
        wanted: What the caller asked for.
        accepted: What the server said before.
        error_of: How a failure is told.

    Raises:
        ConnectionError: the reader is gone, or reads nothing.
    """

    async def send(data: bytes) -> None:
        if not streaming.names_events and data.startswith(_NAME):
            data = data[data.index(b"\n") + 1 :]
        try:
            async with asyncio.timeout(streaming.send_timeout_s):
                await response.write(data)
        except TimeoutError:
            message = "the reader reads nothing"
            raise ConnectionResetError(message) from None

    writer = _Writer(streaming, wanted=wanted, accepted=accepted)
    completed: Completed | None = None
    for warning in writer.warnings:
        await send(writer.warning(warning))
    try:
        async for event in _with_pauses(events, every_s=streaming.keep_alive_s):
            if event is None:
                await send(_KEEP_ALIVE)
                continue
            if isinstance(event, Completed):
                completed = event
            message = await writer.message(event)
            if message is not None:
                await send(message)
        if completed is not None and writer.num_images == 0:
            await send(error_event(all_withheld()))
    except LatentwireError as error:
        await send(error_event(error_of(error)))
    return completed


async def _with_pauses(
    events: AsyncIterator[Event], *, every_s: float
) -> AsyncIterator[Event | None]:
    """Yields the events, and None after every so many seconds without one."""
    waiting: asyncio.Task[Event] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=every_s)
            if not done:
                yield None
                continue
            finished, waiting = waiting, None
            try:
                event = finished.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()


class _Writer:
    """Puts the events of one generation into OpenAI's words."""

    def __init__(
        self, streaming: Streaming, *, wanted: ImageRequest, accepted: Accepted | None
    ) -> None:
        self.warnings = warnings_of(accepted)
        self._revised_prompt = revised_prompt(accepted)
        self._streaming = streaming
        self._body = wanted.body
        self._num_partials: dict[int, int] = {}
        self._num_steps = 0
        self.num_images = 0

    def warning(self, warning: WarningAnswer) -> bytes:
        """Tells it before the picture is there, to those who ask in an event."""
        if not self._streaming.wants_progress:
            return _comment(warning["message"])
        return _event({"type": "latentwire.warning", **warning})

    async def message(self, event: Event) -> bytes | None:
        match event:
            case Progress():
                self._num_steps = max(self._num_steps, event.step_count)
                return self._progress(event) if self._streaming.wants_progress else None
            case Preview():
                # Encoding a picture and its base64 takes milliseconds.
                return await asyncio.to_thread(self._partial, event)
            case Image() if event.is_filtered:
                return self._withheld(event)
            case Image():
                self.num_images += 1
                return await asyncio.to_thread(self._completed, event)
            case _:
                return None

    def _progress(self, event: Progress) -> bytes:
        # Sent only to those who ask: OpenAI's clients would take it for an image.
        return _event(
            {
                "type": "latentwire.progress",
                "phase": event.phase,
                "step": event.step,
                "step_count": event.step_count,
                "fraction": event.fraction,
                "estimated_remaining_s": event.estimated_remaining_s,
            }
        )

    def _partial(self, event: Preview) -> bytes | None:
        index = self._num_partials.get(event.image_index, 0)
        if index == self._streaming.partial_images:
            return None
        self._num_partials[event.image_index] = index + 1
        output_format = self._body.output_format or "png"
        is_edit = self._streaming.is_edit
        return _event(
            {
                "type": "image_edit.partial_image" if is_edit else "image_generation.partial_image",
                "b64_json": _base64(_converted(event.data, output_format)),
                "created_at": int(time.time()),
                "size": f"{event.width}x{event.height}",
                "quality": quality_told(self._body) or "auto",
                "background": "opaque",
                "output_format": output_format,
                "partial_image_index": index,
                "image_index": event.image_index,
                "step": event.step,
            }
        )

    def _completed(self, event: Image) -> bytes:
        is_edit = self._streaming.is_edit
        told: CompletedImageEvent = {
            "type": "image_edit.completed" if is_edit else "image_generation.completed",
            "b64_json": _base64(event.data),
            "created_at": int(time.time()),
            "size": f"{event.width}x{event.height}",
            "quality": quality_told(self._body) or "auto",
            "background": "opaque",
            "output_format": format_of(event),
            "usage": usage_of(num_steps=self._num_steps),
            "image_index": event.index,
            "seed": event.seed,
        }
        if self._revised_prompt is not None:
            told["revised_prompt"] = self._revised_prompt
        if self.warnings:
            told["warnings"] = self.warnings
        return _event(told)

    def _withheld(self, event: Image) -> bytes:
        """Tells it where OpenAI's clients do not look, and in an event to those who ask."""
        warning = withheld_warning(event)
        if not self._streaming.wants_progress:
            return _comment(warning["message"])
        return _event({"type": "latentwire.withheld", **warning})


def error_event(error: ApiError) -> bytes:
    """Returns the one form of an error that OpenAI's clients raise in the middle of a stream."""
    return _lines("error", envelope(error))


def _comment(text: str) -> bytes:
    # A line's end would end the comment, and with it what clients do not look at.
    return f": {' '.join(text.split())}\n\n".encode()


def _event(event: _Event) -> bytes:
    return _lines(event["type"], event)


def _lines(name: str, data: _Event | ErrorAnswer) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _converted(preview: bytes, output_format: OutputFormat) -> bytes:
    """Returns a preview, which the server makes as a JPEG, in the images' format."""
    if output_format == "jpeg":
        return preview
    out = io.BytesIO()
    with PillowImage.open(io.BytesIO(preview)) as image:
        image.save(out, output_format.upper())
    return out.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
