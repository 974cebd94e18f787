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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image as PillowImage

from latentwire import Completed, Image, LatentwireError, Preview, Progress
from latentwire_bridge.openai.errors import all_withheld, envelope
from latentwire_bridge.openai.responses import (
    answer_quality,
    format_of,
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
        PartialImageEvent,
        ProgressEvent,
        WarningEvent,
        WithheldEvent,
    )
    from latentwire_bridge.openai.errors import ApiError
    from latentwire_bridge.openai.schema import ImageBody

    _Event = PartialImageEvent | CompletedImageEvent | ProgressEvent | WarningEvent | WithheldEvent

CONTENT_TYPE: Final = "text/event-stream"
_KEEP_ALIVE: Final = b": still generating\n\n"
_NAME: Final = b"event: "


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What the reader of a stream needs."""

    is_edit: bool
    keep_alive_s: float
    """Silence after which a comment is sent."""
    send_timeout_s: float
    """How long to wait for a reader that does not read."""
    names_events: bool
    """Whether to send ``event:`` lines, which repeat the data's type."""


async def send_events(
    response: web.StreamResponse,
    events: AsyncIterator[Event],
    *,
    body: ImageBody,
    options: StreamOptions,
    accepted: Accepted | None,
    error_of: Callable[[LatentwireError], ApiError],
) -> Completed | None:
    """Sends the warnings and the events of a generation; an error becomes the last event.

    Args:
        response: The response, whose headers were sent.
        events: The generation's events after ``accepted``.
        body: The caller's request.
        options: What the reader needs.
        accepted: The generation's first event.
        error_of: Translates a failure.

    Returns:
        The generation's last event; None if it failed.

    Raises:
        ConnectionError: The reader is gone or does not read.
    """

    async def send(data: bytes) -> None:
        if not options.names_events and data.startswith(_NAME):
            data = data[data.index(b"\n") + 1 :]
        try:
            async with asyncio.timeout(options.send_timeout_s):
                await response.write(data)
        except TimeoutError:
            message = "the reader does not read"
            raise ConnectionResetError(message) from None

    writer = _Writer(body, is_edit=options.is_edit, accepted=accepted)
    completed: Completed | None = None
    for warning in writer.warning_messages():
        await send(warning)
    try:
        async for event in _with_pauses(events, every_s=options.keep_alive_s):
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
    """Yields the events, and None whenever there was none for so many seconds."""
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
    """Turns the events of one generation into messages of the stream."""

    def __init__(self, body: ImageBody, *, is_edit: bool, accepted: Accepted | None) -> None:
        self.num_images = 0
        self._body = body
        self._is_edit = is_edit
        self._warnings = warnings_of(accepted)
        self._revised_prompt = revised_prompt(accepted)
        self._num_partials: dict[int, int] = {}
        self._num_steps = 0

    def warning_messages(self) -> list[bytes]:
        """Returns the server's warnings, which are known before the first image."""
        if self._body.progress:
            return [_event({"type": "latentwire.warning", **one}) for one in self._warnings]
        return [_comment(one["message"]) for one in self._warnings]

    async def message(self, event: Event) -> bytes | None:
        match event:
            case Progress():
                self._num_steps = max(self._num_steps, event.step_count)
                return self._progress(event) if self._body.progress else None
            case Preview():
                # Encoding an image and its base64 takes milliseconds.
                return await asyncio.to_thread(self._partial, event)
            case Image() if event.is_filtered:
                warning = withheld_warning(event)
                if self._body.progress:
                    return _event({"type": "latentwire.withheld", **warning})
                return _comment(warning["message"])
            case Image():
                self.num_images += 1
                return await asyncio.to_thread(self._completed, event)
            case _:
                return None

    def _progress(self, event: Progress) -> bytes:
        # Sent only on request: OpenAI's clients would take it for an image.
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
        if index == self._body.partial_images:
            return None
        self._num_partials[event.image_index] = index + 1
        data = event.data
        if self._body.output_format != "jpeg":  # which previews are
            out = io.BytesIO()
            with PillowImage.open(io.BytesIO(data)) as image:
                image.save(out, self._body.output_format.upper())
            data = out.getvalue()
        return _event(
            {
                "type": (
                    "image_edit.partial_image"
                    if self._is_edit
                    else "image_generation.partial_image"
                ),
                "b64_json": base64.b64encode(data).decode(),
                "created_at": int(time.time()),
                "size": f"{event.width}x{event.height}",
                "quality": answer_quality(self._body) or "auto",
                "background": "opaque",
                "output_format": self._body.output_format,
                "partial_image_index": index,
                "image_index": event.image_index,
                "step": event.step,
            }
        )

    def _completed(self, event: Image) -> bytes:
        answer: CompletedImageEvent = {
            "type": "image_edit.completed" if self._is_edit else "image_generation.completed",
            "b64_json": base64.b64encode(event.data).decode(),
            "created_at": int(time.time()),
            "size": f"{event.width}x{event.height}",
            "quality": answer_quality(self._body) or "auto",
            "background": "opaque",
            "output_format": format_of(event),
            "usage": usage_of(num_steps=self._num_steps),
            "image_index": event.index,
            "seed": event.seed,
        }
        if self._revised_prompt is not None:
            answer["revised_prompt"] = self._revised_prompt
        if self._warnings:
            answer["warnings"] = self._warnings
        return _event(answer)


def error_event(error: ApiError) -> bytes:
    """Returns an error in the one form that OpenAI's clients raise in the middle of a stream."""
    return _lines("error", envelope(error))


def _comment(text: str) -> bytes:
    # A line break would end the comment and begin a field.
    return f": {' '.join(text.split())}\n\n".encode()


def _event(event: _Event) -> bytes:
    return _lines(event["type"], event)


def _lines(name: str, data: _Event | ErrorAnswer) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
