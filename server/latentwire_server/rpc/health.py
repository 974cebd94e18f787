"""What is SERVING and why: ``grpc.health.v1`` for the server, its services and its models.

A model serves while it is loaded; the services serve once what is loaded first is there, while any
model can be had. Draining or a failed device turns everything to NOT_SERVING, for good. No probe
ever reaches the device, or loads a model.
Event loop only.

The library's servicer is not used: it says SERVING before anything is loaded, and writes to its
watchers under a lock, where one that does not read would hold up a shutdown.
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
    """Answers health checks by name: the services' and ``models/<id>``."""

    def __init__(self, models: Iterable[str]) -> None:
        """Takes the names of all models; nothing serves yet."""
        self._statuses = dict.fromkeys((*SERVICES, *models), _NOT_SERVING)
        self._changed = asyncio.Event()
        self._is_stopped = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the standard service."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def model(self, name: str, *, is_ready: bool) -> None:
        """Tells whether ``models/<id>`` is loaded."""
        self._tell((name,), is_serving=is_ready)

    def services(self, *, are_ready: bool) -> None:
        """Tells whether requests are served."""
        self._tell(SERVICES, is_serving=are_ready)

    def stop(self) -> None:
        """Says NOT_SERVING for everything from now on."""
        self._is_stopped = True
        self._set(self._statuses, _NOT_SERVING)

    def _tell(self, names: Iterable[str], *, is_serving: bool) -> None:
        if not self._is_stopped:
            self._set(names, _SERVING if is_serving else _NOT_SERVING)

    def _set(
        self, names: Iterable[str], status: health_pb2.HealthCheckResponse.ServingStatus
    ) -> None:
        self._statuses.update(dict.fromkeys(names, status))
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
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await changed.wait()
