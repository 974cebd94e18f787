"""The edge of every RPC: authentication, decoding, errors, delivery, the request log.

One interceptor, because their order matters and is easiest to see in one place. It wraps every
handler, including those of health and reflection. Event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf.message import DecodeError

from latentwire_server.engine.errors import InvalidRequest, SlowReader, Violation
from latentwire_server.rpc.auth import Unauthenticated, current_principal
from latentwire_server.rpc.status import failure_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from latentwire_server.rpc.auth import Authenticator

    # grpc.aio hands behaviours, requests and responses around untyped.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

_ORDINARY: Final = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)

_logger: Final = logging.getLogger(__name__)


class RpcEdge(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server."""

    def __init__(self, authenticator: Authenticator, *, send_timeout_s: float) -> None:
        """Makes the interceptor; a client may leave a message unread for ``send_timeout_s``."""
        self._authenticator = authenticator
        self._send_timeout_s = send_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the wrapped handler of a method.

        A caller without a key is refused before it learns whether the method exists.
        """
        handler = await continuation(handler_call_details)
        call = _Call(
            handler,
            method=handler_call_details.method,
            authenticator=self._authenticator,
            send_timeout_s=self._send_timeout_s,
        )
        if handler is None:
            return call.refusal(handler_call_details.invocation_metadata or ())
        return call.wrapped(handler)


class _Call:
    """One RPC on its way through the edge."""

    def __init__(
        self,
        handler: Handler | None,
        *,
        method: str,
        authenticator: Authenticator,
        send_timeout_s: float,
    ) -> None:
        self._decode = handler.request_deserializer if handler else None
        self._behaviour = cast(
            "Callable[[Any, Context], Any] | None",
            handler
            and (
                handler.unary_unary
                or handler.unary_stream
                or handler.stream_unary
                or handler.stream_stream
            ),
        )
        self._method = method
        self._service = method.strip("/").partition("/")[0]
        self._authenticator = authenticator
        self._send_timeout_s = send_timeout_s

    def wrapped(self, handler: Handler) -> Handler:
        """Returns a handler of the same shape that takes undecoded requests."""
        serializer = handler.response_serializer
        if handler.response_streaming:
            streaming = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return streaming(self._stream, response_serializer=serializer)
        unary = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return unary(self._respond, response_serializer=serializer)

    def refusal(self, metadata: Iterable[tuple[str, str | bytes]]) -> Handler | None:
        """Returns a handler that refuses an unknown caller; for others None, UNIMPLEMENTED."""
        try:
            self._authenticator.principal(self._service, metadata)
        except Unauthenticated:
            # Answers without reading a request, whichever kind of method the caller expects.
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return None

    def _principal(self, context: Context) -> str:
        names = context.auth_context().get("x509_common_name", [])
        return self._authenticator.principal(
            self._service,
            context.invocation_metadata() or (),
            certificate_name=next(iter(names), b""),
        )

    async def _respond(self, sent: bytes | AsyncIterator[bytes], context: Context) -> object:
        async with self._guarded(context):
            return await cast("Awaitable[object]", self._call(sent, context))

    async def _stream(self, sent: bytes | AsyncIterator[bytes], context: Context) -> None:
        async with self._guarded(context):
            await self._deliver(self._call(sent, context), context)

    def _call(self, sent: bytes | AsyncIterator[bytes], context: Context) -> object:
        if self._behaviour is None:
            raise NotImplementedError(self._method)
        request = self._decoded(sent) if isinstance(sent, bytes) else self._decoded_all(sent)
        return self._behaviour(request, context)

    async def _deliver(self, responses: object, context: Context) -> None:
        """Sends what an async generator yields, and always closes it.

        grpc.aio would leave a generator that was cancelled between two messages to the garbage
        collector; here its ``finally`` runs at once, which frees the device.
        """
        if not isinstance(responses, AsyncGenerator):
            # A coroutine that writes its own responses, such as grpcio-health-checking's Watch.
            await cast("Awaitable[None]", responses)
            return
        async with aclosing(responses):
            async for response in responses:
                try:
                    async with asyncio.timeout(self._send_timeout_s):
                        await context.write(response)
                except TimeoutError:
                    raise SlowReader(send_timeout_s=self._send_timeout_s) from None

    def _decoded(self, request: bytes) -> object:
        if self._decode is None:
            return request
        try:
            return self._decode(request)
        except DecodeError:
            description = f"the request cannot be decoded as a message of {self._method}"
            violation = Violation(field="", reason="UNDECODABLE", description=description)
            raise InvalidRequest((violation,)) from None

    async def _decoded_all(self, requests: AsyncIterator[bytes]) -> AsyncIterator[object]:
        async for request in requests:
            yield self._decoded(request)

    @asynccontextmanager
    async def _guarded(self, context: Context) -> AsyncIterator[None]:
        started = time.monotonic()
        code, reason = grpc.StatusCode.OK, ""
        try:
            current_principal.set(self._principal(context))
            yield
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # Border: the RPC edge
            failure = failure_of(error)
            code, reason = failure.code, failure.reason
            await context.abort(code, failure.message, failure.trailing_metadata())
        finally:
            _logger.log(
                logging.DEBUG if code in _ORDINARY else logging.INFO,
                "rpc method=%s code=%s reason=%s duration_s=%.3f",
                self._method,
                code.name,
                reason,
                time.monotonic() - started,
            )
