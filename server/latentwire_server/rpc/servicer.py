"""The ``ImageGeneration`` RPCs on grpc.aio: adds the caller and the time left to each message.

The service does the work, and the edge translates errors. Event loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.rpc.auth import current_principal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc

    from latentwire_server.service.generations import GenerationService

    Context = grpc.aio.ServicerContext[Any, Any]

# The names of the methods are the contract's, and so is `context`, whether it is used or not.
# ruff: noqa: N802, ARG002


class ImageGenerationServicer(rpc.ImageGenerationServicer):
    """Adapts the service to grpc.aio."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service

    def GenerateImage(
        self, request: pb.GenerateImageRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateImageResponse]:
        """Generates images and streams every event."""
        return self._service.generate(
            request, owner=current_principal.get(), time_remaining_s=context.time_remaining()
        )

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationResponse:
        """Returns a generation of the caller."""
        return self._service.get_generation(request, owner=current_principal.get())

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: Context
    ) -> pb.ListGenerationsResponse:
        """Lists the caller's queued and running generations."""
        return self._service.list_generations(request, owner=current_principal.get())

    async def CancelGeneration(
        self, request: pb.CancelGenerationRequest, context: Context
    ) -> pb.CancelGenerationResponse:
        """Cancels a generation of the caller."""
        return self._service.cancel_generation(request, owner=current_principal.get())

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Lists the models."""
        return self._service.list_models(request)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Returns one model."""
        return self._service.get_model(request)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Returns the server's version, limits and load."""
        return self._service.get_server_info(request)
