"""Health checks: ``grpc.health.v1`` for the server, its services and its models.

A model is SERVING while it is loaded. The services are SERVING once the preloaded models are there
and as long as any model is usable. Draining or a failed device turns everything to NOT_SERVING for
good. A probe never reaches the device and never loads a model. Event loop only.

The library's servicer is not used: it reports SERVING before anything is loaded, and it writes to
its watchers under a lock, where a watcher that does not read would block a shutdown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    Context = grpc.aio.ServicerContext[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]

SERVICES: Final = ("", "latentwire.v1.ImageGeneration", "latentwire.v1.ModelAdmin")
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # the library is untyped
    """Answers health checks for the services and for each ``models/<id>``."""

    def __init__(self, models: Iterable[str]) -> None:
        """Starts with every service and every model in ``models`` NOT_SERVING."""
        self._statuses = dict.fromkeys((*SERVICES, *models), _NOT_SERVING)
        self._changed = asyncio.Event()
        self._is_stopped = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the standard service."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def model(self, name: str, *, is_ready: bool) -> None:
        """Sets whether ``models/<id>`` is loaded."""
        self._set((name,), is_serving=is_ready)

    def services(self, *, are_ready: bool) -> None:
        """Sets whether requests are served."""
        self._set(SERVICES, is_serving=are_ready)

    def stop(self) -> None:
        """Reports NOT_SERVING for everything from now on."""
        self._set(self._statuses, is_serving=False)
        self._is_stopped = True

    def _set(self, names: Iterable[str], *, is_serving: bool) -> None:
        if self._is_stopped:
            return
        self._statuses.update(dict.fromkeys(names, _SERVING if is_serving else _NOT_SERVING))
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns a service's status at once."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the contract's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002 - gRPC's signature
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Streams a service's status now and whenever it changes."""
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != sent:
                sent = status
                yield health_pb2.HealthCheckResponse(status=status)
            await changed.wait()
