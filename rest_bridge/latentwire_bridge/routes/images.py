"""``/images/...``: generations, edits and variations, as JSON or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire import Accepted, Completed, Image, LatentwireError, Progress
from latentwire_bridge.edge.body import is_form, read_form, read_object
from latentwire_bridge.edge.callers import (
    client_of,
    keep_alive_s,
    reads_event_names,
    request_id_of,
    timeout_s,
)
from latentwire_bridge.edge.edge import PREPARE, REQUEST_ID
from latentwire_bridge.openai.errors import ApiError, all_withheld, internal_error
from latentwire_bridge.openai.failed_calls import api_error
from latentwire_bridge.openai.requests import (
    changes_default_steps,
    generate_options,
    preview_options,
    steps_for,
)
from latentwire_bridge.openai.responses import Result, answer_quality, response_body
from latentwire_bridge.openai.schema import EditBody, VariationBody, parse_request
from latentwire_bridge.openai.source_images import from_form, from_json, source_images
from latentwire_bridge.openai.streaming import (
    CONTENT_TYPE,
    StreamOptions,
    error_event,
    send_events,
)

if TYPE_CHECKING:
    from latentwire import AsyncClient, AsyncGenerationStream, GenerateOptions
    from latentwire_bridge.edge.rate_limits import RateLimits
    from latentwire_bridge.openai.schema import ImageBody, ImageRequest
    from latentwire_bridge.openai.source_images import SourceImages
    from latentwire_bridge.routes.files import FileRoutes
    from latentwire_bridge.routes.models import ModelRoutes
    from latentwire_bridge.settings import Settings

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generation:
    """A generation that was sent to the server."""

    request: web.Request
    wanted: ImageRequest
    is_edit: bool
    events: AsyncGenerationStream
    outlives_call: bool
    """Whether it continues when its caller leaves, so that a retry finds it."""

    @property
    def body(self) -> ImageBody:
        return self.wanted.body

    def error(self, error: LatentwireError) -> ApiError:
        names = self.wanted.sent_names
        return api_error(error, sent_names=names, continues=self.outlives_call)


class ImageRoutes:
    """Generates images."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        models: ModelRoutes,
        files: FileRoutes,
        limits: RateLimits,
        settings: Settings,
    ) -> None:
        self._limits = limits
        self._client = client
        self._models = models
        self._files = files
        self._settings = settings

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Generates images from a prompt. A caller who leaves cancels the generation."""
        sent = await read_object(request, timeout_s=self._settings.body_timeout_s)
        return await self._answer(request, parse_request(sent))

    async def edit(self, request: web.Request) -> web.StreamResponse:
        """Generates images from an image, or in a masked part of it."""
        return await self._answer_upload(request, EditBody)

    async def vary(self, request: web.Request) -> web.StreamResponse:
        """Generates images similar to an image."""
        return await self._answer_upload(request, VariationBody)

    async def _answer_upload(
        self, request: web.Request, kind: type[ImageBody]
    ) -> web.StreamResponse:
        longest_s = self._settings.body_timeout_s
        larger = request.clone(client_max_size=self._settings.max_upload_bytes)
        if is_form(larger):
            parts = await read_form(larger, timeout_s=longest_s)
            upload = await asyncio.to_thread(from_form, parts)
        else:
            sent = await read_object(larger, timeout_s=longest_s, takes_forms=True)
            upload = await asyncio.to_thread(from_json, sent)
        wanted = parse_request(upload.fields, kind=kind, is_form=upload.is_form)
        takes_mask = kind is not VariationBody
        source = await asyncio.to_thread(source_images, upload, takes_mask=takes_mask)
        return await self._answer(request, wanted, source=source)

    async def _answer(
        self, request: web.Request, wanted: ImageRequest, *, source: SourceImages | None = None
    ) -> web.StreamResponse:
        try:
            generation = await self._begin(request, wanted, source)
        except LatentwireError as error:
            raise api_error(error, sent_names=wanted.sent_names) from error
        async with generation.events:
            if wanted.body.stream:
                return await self._stream(generation)
            result = await self._finish(generation)
        response_format = wanted.body.response_format
        urls: list[str] | list[None] = [None] * len(result.images)
        if response_format != "b64_json":
            try:
                urls = await self._files.store(result.images, request=request)
            except OSError:
                # A full disk costs the URLs, not the images that are already here.
                _logger.exception("file not stored error_id=%s", request[REQUEST_ID])
                if response_format == "url":
                    raise internal_error(request[REQUEST_ID]) from None
        body = await asyncio.to_thread(
            response_body,
            result,
            created=int(time.time()),
            urls=urls,
            has_data=response_format != "url",
            quality=answer_quality(wanted.body),
        )
        headers = await self._limits.headers()
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _begin(
        self, request: web.Request, wanted: ImageRequest, source: SourceImages | None
    ) -> _Generation:
        body, client = wanted.body, client_of(request.headers, client=self._client)
        request_id = request_id_of(request.headers)
        self._limits.refresh(client)
        model = self._models.resolve(body.model)
        num_inference_steps = body.num_inference_steps
        if changes_default_steps(body):
            num_inference_steps = steps_for(body, await client.model(model))
        options = generate_options(
            body, model=model, num_inference_steps=num_inference_steps, source=source
        )
        if body.stream and body.partial_images:
            options |= await self._preview_options(client, body, options)
        if request_id is not None:
            options |= {"request_id": request_id, "disconnect_policy": "continue"}
        longest_s = self._settings.generation_timeout_s
        if not body.stream:
            # Clients time out when nothing arrives; in a stream, comments do.
            longest_s = timeout_s(request.headers, most_s=longest_s)
        return _Generation(
            request=request,
            wanted=wanted,
            is_edit=source is not None,
            events=client.stream(body.prompt, timeout_s=longest_s, **options),
            outlives_call=request_id is not None,
        )

    async def _preview_options(
        self, client: AsyncClient, body: ImageBody, options: GenerateOptions
    ) -> GenerateOptions:
        """Asks the server for the defaults of the request, on which its steps depend."""
        options = {**options, "validate_only": True}
        longest_s = self._settings.generation_timeout_s
        stream = client.stream(body.prompt, timeout_s=longest_s, **options)
        async with stream as events:
            async for event in events:
                if isinstance(event, Accepted):
                    return preview_options(body.partial_images, event.effective_request)
        return {}

    async def _stream(self, generation: _Generation) -> web.StreamResponse:
        request = generation.request
        try:
            # Nothing was sent yet: what the server refuses becomes a plain error response.
            first = await anext(generation.events)
        except LatentwireError as error:
            raise await self._with_limits(generation.error(error)) from error
        headers = {"Cache-Control": "no-store", **await self._limits.headers()}
        response = web.StreamResponse(headers=headers)
        response.content_type = CONTENT_TYPE
        request[PREPARE](response)
        await response.prepare(request)
        options = StreamOptions(
            is_edit=generation.is_edit,
            keep_alive_s=keep_alive_s(request.headers, most_s=self._settings.keep_alive_s),
            send_timeout_s=self._settings.send_timeout_s,
            names_events=reads_event_names(request.headers),
        )
        try:
            completed = await send_events(
                response,
                generation.events,
                body=generation.body,
                options=options,
                accepted=first if isinstance(first, Accepted) else None,
                error_of=generation.error,
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

    async def _finish(self, generation: _Generation) -> Result:
        accepted: Accepted | None = None
        images: list[Image] = []
        num_steps = 0
        try:
            async for event in generation.events:
                match event:
                    case Accepted():
                        accepted = event
                    case Progress():
                        num_steps = max(num_steps, event.step_count)
                    case Image():
                        images.append(event)
                    case Completed():
                        _log_completed(event, generation.request[REQUEST_ID])
                    case _:
                        # A JSON response has no place for previews and the queue.
                        continue
        except LatentwireError as error:
            raise await self._with_limits(generation.error(error)) from error
        shown = tuple(image for image in images if not image.is_filtered)
        if not shown:
            raise all_withheld()
        withheld = tuple(image for image in images if image.is_filtered)
        return Result(accepted=accepted, images=shown, withheld=withheld, num_steps=num_steps)

    async def _with_limits(self, error: ApiError) -> ApiError:
        """Adds the state of the queue to an error that is about the queue."""
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            full_for_s = error.retry_after_s or 0.0
            error.headers.update(await self._limits.headers(full_for_s=full_for_s))
        return error


def _log_completed(event: Completed, request_id: str) -> None:
    _logger.info(
        "generated generation=%s images=%d queued_s=%.3f total_s=%.3f request_id=%s",
        event.generation,
        event.image_count,
        event.timings.queued_s,
        event.timings.total_s,
        request_id,
    )
