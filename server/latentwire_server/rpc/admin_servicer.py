"""The ``ModelAdmin`` RPCs on grpc.aio: loads and unloads models. Event loop only.

The edge has checked already that the caller may. Unlike in other RPCs, an empty name does not mean
the default model.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.convert.events import model_loading
from latentwire_server.convert.resources import model_to_proto
from latentwire_server.service.paging import required_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.registry import ModelRegistry

    Context = grpc.aio.ServicerContext[Any, Any]

# The names of the methods are the contract's, and so is `context`, whether it is used or not.
# ruff: noqa: N802, ARG002


class ModelAdminServicer(rpc.ModelAdminServicer):
    """Adapts the registry to grpc.aio."""

    def __init__(self, registry: ModelRegistry, catalogue: Catalogue) -> None:
        self._registry = registry
        self._catalogue = catalogue

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> AsyncGenerator[pb.LoadModelResponse]:
        """Loads a model and streams the progress; the last message is the model."""
        name = required_name(request.name, collection="models")
        async with aclosing(self._registry.load(name)) as progress:
            async for event in progress:
                yield pb.LoadModelResponse(model_loading=model_loading(event))
        yield pb.LoadModelResponse(model=model_to_proto(self._catalogue.snapshot(name)))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        """Unloads a model that no generation needs."""
        name = required_name(request.name, collection="models")
        await self._registry.unload(name)
        return pb.UnloadModelResponse(model=model_to_proto(self._catalogue.snapshot(name)))
