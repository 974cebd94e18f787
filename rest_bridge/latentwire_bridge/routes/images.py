"""``/v1/images/...``: a generation in OpenAI's words, and the files behind its URLs."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire import Accepted, Completed, Image, LatentwireError, Progress
from latentwire_bridge.edge.body import read_object
from latentwire_bridge.edge.callers import (
    client_of,
    keep_alive_s,
    patience_s,
    reads_event_names,
    request_id_of,
)
from latentwire_bridge.edge.edge import PREPARE, REQUEST_ID
from latentwire_bridge.edge.uploads import from_json, is_form, pictures_of, read_form
from latentwire_bridge.openai.errors import ApiError, all_withheld, api_error, internal_error
from latentwire_bridge.openai.requests import (
    depends_on_default_steps,
    generate_options,
    steps_for,
)
from latentwire_bridge.openai.responses import Result, quality_told, response_body
from latentwire_bridge.openai.schema import EditBody, VariationBody, parse_request
from latentwire_bridge.openai.stream_options import Streaming
from latentwire_bridge.openai.streaming import CONTENT_TYPE, error_event, send_events

if TYPE_CHECKING:
    from latentwire import AsyncClient, AsyncGenerationStream
    from latentwire_bridge.edge.rate_limits import RateLimits
    from latentwire_bridge.edge.uploads import Sent
    from latentwire_bridge.files.file_store import FileStore, StoredFile
    from latentwire_bridge.openai.requests import Pictures
    from latentwire_bridge.openai.schema import ImageRequest
    from latentwire_bridge.routes.models import ModelRoutes
    from latentwire_bridge.settings import ImageSettings

FILES_PATH: Final = "/files/"

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    """A generation that is about to begin."""

    stream: AsyncGenerationStream
    streaming: Streaming
    is_repeatable: bool
    """Whether it goes on when its caller leaves, and a repeat finds it."""

    def error(self, error: LatentwireError, wanted: ImageRequest) -> ApiError:
        """Returns how it is told that it failed."""
        return api_error(error, sent_names=wanted.sent_names, goes_on=self.is_repeatable)


class ImageRoutes:
    """Draws images and serves their files."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        models: ModelRoutes,
        files: FileStore,
        limits: RateLimits,
        settings: ImageSettings,
    ) -> None:
        """Takes the server, the models' names, where files go, and what tells of the queue."""
        self._limits = limits
        self._client = client
        self._models = models
        self._files = files
        self._settings = settings

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Draws images from a prompt. The caller's going away cancels the drawing."""
        sent = await read_object(request, timeout_s=self._settings.body_timeout_s)
        return await self._answer(request, parse_request(sent))

    async def edit(self, request: web.Request) -> web.StreamResponse:
        """Draws images from an image, or in a mask of it."""
        sent = await self._read_pictures(request)
        wanted = parse_request(sent.fields, kind=EditBody)
        pictures = await asyncio.to_thread(pictures_of, sent, wanted.body)
        return await self._answer(request, wanted, pictures=pictures)

    async def vary(self, request: web.Request) -> web.StreamResponse:
        """Draws images that are much like an image."""
        sent = await self._read_pictures(request)
        wanted = parse_request(sent.fields, kind=VariationBody)
        pictures = await asyncio.to_thread(pictures_of, sent, wanted.body, is_variation=True)
        return await self._answer(request, wanted, pictures=pictures)

    async def _read_pictures(self, request: web.Request) -> Sent:
        larger = request.clone(client_max_size=self._settings.max_upload_bytes)
        if is_form(larger):
            return await read_form(larger, timeout_s=self._settings.body_timeout_s)
        sent = await read_object(larger, timeout_s=self._settings.body_timeout_s, takes_forms=True)
        return await asyncio.to_thread(from_json, sent)

    async def _answer(
        self, request: web.Request, wanted: ImageRequest, *, pictures: Pictures | None = None
    ) -> web.StreamResponse:
        drawing = await self._begin(request, wanted, pictures)
        async with drawing.stream as events:
            if wanted.body.stream:
                return await self._stream(request, wanted, drawing, events)
            result = await self._finish(request, wanted, drawing, events)
        response_format = wanted.body.response_format
        urls: list[str | None] = [None] * len(result.images)
        if response_format != "b64_json":
            urls = await self._store(request, result, is_url_required=response_format == "url")
        body = await asyncio.to_thread(
            response_body,
            result,
            created=int(time.time()),
            urls=urls,
            is_b64_wanted=response_format != "url",
            quality=quality_told(wanted.body),
        )
        headers = await self._limits.headers()
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _begin(
        self, request: web.Request, wanted: ImageRequest, pictures: Pictures | None
    ) -> _Drawing:
        body, client = wanted.body, client_of(request.headers, client=self._client)
        request_id = request_id_of(request.headers)
        self._limits.refresh(client)
        model = self._models.resolve(body.model)
        try:
            num_inference_steps = body.num_inference_steps
            if num_inference_steps is None and depends_on_default_steps(body):
                num_inference_steps = steps_for(body, await client.model(model))
            strength = 1.0 if pictures is None else pictures.strength_taken
            streaming = Streaming.of(
                wanted,
                is_edit=pictures is not None,
                num_steps=max(1, int((num_inference_steps or 1) * strength)),
                keep_alive_s=keep_alive_s(request.headers, most_s=self._settings.keep_alive_s),
                send_timeout_s=self._settings.send_timeout_s,
                names_events=reads_event_names(request.headers),
            )
            options = generate_options(
                body,
                model=model,
                num_inference_steps=num_inference_steps,
                pictures=pictures,
                streaming=streaming if body.stream else None,
                request_id=request_id,
            )
            timeout_s = self._settings.generation_timeout_s
            if not body.stream:  # Whose silence is what a client waits through.
                timeout_s = patience_s(request.headers, most_s=timeout_s)
            stream = client.stream(body.prompt, timeout_s=timeout_s, **options)
        except LatentwireError as error:
            raise api_error(error, sent_names=wanted.sent_names) from error
        return _Drawing(stream=stream, streaming=streaming, is_repeatable=request_id is not None)

    async def _stream(
        self,
        request: web.Request,
        wanted: ImageRequest,
        drawing: _Drawing,
        events: AsyncGenerationStream,
    ) -> web.StreamResponse:
        try:
            # Whatever the server refuses is a plain answer: nothing was sent yet.
            first = await anext(events)
        except LatentwireError as error:
            raise await self._told(drawing.error(error, wanted)) from error
        headers = {"Cache-Control": "no-store", **await self._limits.headers()}
        response = web.StreamResponse(headers=headers)
        response.content_type = CONTENT_TYPE
        request[PREPARE](response)
        await response.prepare(request)
        try:
            completed = await send_events(
                response,
                events,
                streaming=drawing.streaming,
                wanted=wanted,
                accepted=first if isinstance(first, Accepted) else None,
                error_of=partial(drawing.error, wanted=wanted),
            )
            if completed is not None:
                _log_completed(completed, request[REQUEST_ID])
        except ConnectionError:
            raise
        except Exception:  # Border: the response has begun and cannot become an error
            _logger.exception("unexpected error error_id=%s", request[REQUEST_ID])
            await response.write(error_event(internal_error(request[REQUEST_ID])))
        await response.write_eof()
        return response

    async def file(self, request: web.Request) -> web.Response:
        """Serves a stored file."""
        stored = self._files.get(request.match_info["name"])
        data = None if stored is None else await asyncio.to_thread(_read, stored)
        if stored is None or data is None:
            message = "there is no such file, or its time is over"
            raise ApiError(message, status=HTTPStatus.NOT_FOUND, code="file_not_found")
        return web.Response(body=data, headers=self._file_headers(stored))

    async def _finish(
        self,
        request: web.Request,
        wanted: ImageRequest,
        drawing: _Drawing,
        events: AsyncGenerationStream,
    ) -> Result:
        accepted: Accepted | None = None
        images: list[Image] = []
        num_steps = 0
        try:
            async for event in events:
                match event:
                    case Accepted():
                        accepted = event
                    case Progress():
                        num_steps = max(num_steps, event.step_count)
                    case Image():
                        images.append(event)
                    case Completed():
                        _log_completed(event, request[REQUEST_ID])
                    case _:
                        # A JSON response shows no pictures on the way.
                        continue
        except LatentwireError as error:
            raise await self._told(drawing.error(error, wanted)) from error
        shown = tuple(image for image in images if not image.is_filtered)
        if not shown:
            raise all_withheld()
        withheld = tuple(image for image in images if image.is_filtered)
        return Result(accepted=accepted, images=shown, withheld=withheld, num_steps=num_steps)

    async def _told(self, error: ApiError) -> ApiError:
        """Returns an error with the state of the queue, where that is what is wrong."""
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            error.headers.update(await self._limits.headers_when_full(error.retry_after_s or 0.0))
        return error

    async def _store(
        self, request: web.Request, result: Result, *, is_url_required: bool
    ) -> list[str | None]:
        base = self._settings.public_url or f"{request.scheme}://{_authority(request)}"
        try:
            names = [
                await asyncio.to_thread(self._files.put, image.data, media_type=image.media_type)
                for image in result.images
            ]
        except OSError:
            # A full disk costs the URLs, not the images that are here already.
            _logger.exception("file not stored error_id=%s", request[REQUEST_ID])
            if is_url_required:
                raise internal_error(request[REQUEST_ID]) from None
            return [None] * len(result.images)
        return [f"{base}{FILES_PATH}{name}" for name in names]

    def _file_headers(self, stored: StoredFile) -> dict[str, str]:
        return {
            "Content-Type": stored.media_type,
            "Cache-Control": f"private, max-age={int(self._files.seconds_left(stored))}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Content-Disposition": f'inline; filename="{stored.path.name}"',
        }


def _read(stored: StoredFile) -> bytes | None:
    try:
        return stored.path.read_bytes()
    except FileNotFoundError:
        # Its time was over between the look-up and now.
        return None


def _authority(request: web.Request) -> str:
    """Returns ``host:port`` as the caller knows us."""
    host = request.headers.get("Host")
    if host:
        return host
    # HTTP/1.0 needs no Host: then our end of the connection.
    address, port = request.get_extra_info("sockname", ("localhost", 80))[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _log_completed(event: Completed, request_id: str) -> None:
    _logger.info(
        "generated generation=%s images=%d queued_s=%.3f total_s=%.3f request_id=%s",
        event.generation,
        event.image_count,
        event.timings.queued_s,
        event.timings.total_s,
        request_id,
    )
