"""The HTTP edge: every request enters and every response leaves here.

Brings paths into one form, checks browsers, turns every error into OpenAI's error object, and adds
the headers that OpenAI's clients read. Event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from yarl import URL

from latentwire_bridge.edge.browsers import preflight_headers
from latentwire_bridge.openai.errors import (
    ApiError,
    error_response,
    internal_error,
    refused_by_http,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latentwire_bridge.edge.browsers import BrowserPolicy

REQUEST_ID: Final = web.RequestKey("request_id", str)
PREPARE: Final[web.RequestKey[Callable[[web.StreamResponse], None]]] = web.RequestKey("prepare")
"""Adds the common headers; for responses that are sent before they are returned."""
OPENAI_VERSION: Final = "2020-10-01"
"""The only version that OpenAI's API ever had."""
_SERVER_NAME: Final = "latentwire"
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_LOGGED_PATH: Final = 200
_PROBES: Final = frozenset({"/healthz", "/readyz"})
_PROBE_STATUSES: Final = frozenset({HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE})

_logger: Final = logging.getLogger(__name__)


def canonical_path(raw_path: str) -> str:
    """Returns a path as the table of routes has it.

    Clients build URLs by hand: a base URL with a slash at its end gives ``/v1//images``, one
    without a version gives ``/images``, and the original service wrote ``/image/generations``.
    """
    parts = [part for part in raw_path.split("/") if part]
    if parts[:1] == ["v1"]:
        del parts[0]
    if parts[:1] == ["image"]:
        parts[0] = "images"
    return "/" + "/".join(parts)


class HttpEdge:
    """Wraps the application's routes."""

    def __init__(
        self,
        routes: Callable[[web.Request], Awaitable[web.StreamResponse]],
        *,
        browsers: BrowserPolicy,
    ) -> None:
        self._routes = routes
        self._browsers = browsers

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request. Raises only if the caller is gone."""
        started = time.monotonic()
        if not isinstance(request, web.Request):
            raise TypeError(request)
        request_id = request_id_from(request.headers.get("x-request-id"))
        request[REQUEST_ID] = request_id

        def prepare(response: web.StreamResponse) -> None:
            origin = request.headers.get("Origin")
            response.headers.update(self._browsers.cors_headers(origin))
            stamp(response, request_id, started=started)

        request[PREPARE] = prepare
        status = 0
        try:
            response = await self._answer(request, request_id)
            if not response.prepared:
                prepare(response)
            status = response.status
            return response
        finally:
            # Status 0: the caller left before there was a response.
            # Probes ask every few seconds; a change of readiness is logged where it is noticed.
            is_probe = request.rel_url.raw_path in _PROBES and status in _PROBE_STATUSES
            _logger.log(
                logging.DEBUG if is_probe else logging.INFO,
                "answered method=%s path=%s status=%d duration_ms=%d request_id=%s",
                request.method,
                ascii(request.rel_url.raw_path[:_MAX_LOGGED_PATH])[1:-1],
                status,
                _milliseconds_since(started),
                request_id,
            )

    async def _answer(self, request: web.Request, request_id: str) -> web.StreamResponse:
        try:
            origin = request.headers.get("Origin")
            self._browsers.check(host=request.headers.get("Host"), origin=origin)
            if request.method == "OPTIONS" and origin is not None:
                requested = request.headers.get("Access-Control-Request-Headers")
                return web.Response(status=204, headers=preflight_headers(requested))
            path = canonical_path(request.rel_url.raw_path)
            url = URL.build(path=path, query_string=request.rel_url.raw_query_string, encoded=True)
            return await self._routes(request.clone(rel_url=url))
        except ApiError as error:
            return error_response(error)
        except web.HTTPException as error:
            return error_response(refused_by_http(error))
        except (asyncio.CancelledError, ConnectionError):
            # The caller is gone.
            raise
        except Exception:
            _logger.exception("unexpected error error_id=%s", request_id)
            return error_response(internal_error(request_id))


class EdgeProtocol(web.RequestHandler):
    """A connection; answers even malformed HTTP with OpenAI's error object."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the parser's text, which quotes the request
    ) -> web.StreamResponse:
        """Answers a request that the parser cannot read, and closes the connection."""
        request_id = request_id_from(None)
        if request.writer.output_size > 0:
            msg = "the response has begun and cannot become an error"
            raise ConnectionError(msg) from exc
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = ApiError("the request is not valid HTTP", status=status, code="invalid_http")
            _logger.info("malformed request status=%d request_id=%s", status, request_id)
        else:
            error = internal_error(request_id)
            _logger.error("unexpected error error_id=%s", request_id, exc_info=exc)
        response = error_response(error)
        stamp(response, request_id, started=time.monotonic())
        response.force_close()
        return response


def request_id_from(sent: str | None) -> str:
    """Returns the caller's own id if it is safe to log, else a new one."""
    return sent if sent and _SANE_REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"


def stamp(response: web.StreamResponse, request_id: str, *, started: float) -> None:
    """Sets the headers of every response."""
    response.headers["x-request-id"] = request_id
    # OpenAI's last client before 1.0 reads this name, and requires a number in the next header.
    response.headers["request-id"] = request_id
    response.headers["openai-processing-ms"] = str(_milliseconds_since(started))
    response.headers["openai-version"] = OPENAI_VERSION
    response.headers["Server"] = _SERVER_NAME
    response.headers["X-Content-Type-Options"] = "nosniff"


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1_000)
