"""The client for asyncio: the same calls, awaited, over one ``grpc.aio`` channel.

Everything here belongs to the event loop on which the client was created. Only I/O lives here:
requests and results are shared with the client for threads.
"""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Self, TypeVar, cast

import grpc
import grpc.aio

from latentwire._assemble import StreamAssembler
from latentwire._channel import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, metadata_from, target_from
from latentwire._events import Image
from latentwire._operations import Operations, Pause, UnaryCall, loaded, loading_step, resume
from latentwire._requests import build_request
from latentwire.errors import error_from_rpc
from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Unpack

    from latentwire._events import Event
    from latentwire._operations import Operation, Outcome, Step
    from latentwire._requests import GenerateOptions
    from latentwire._resources import Generation, Model, ServerInfo

    AsyncCall = grpc.aio.UnaryStreamCall[pb.GenerateImageRequest, pb.GenerateImageResponse]

ResultT = TypeVar("ResultT")


class AsyncGenerationStream:
    """The events of one generation, as they happen.

    An async iterator and context manager. Closing it before the end cancels the generation.
    """

    def __init__(self, call: AsyncCall, request: pb.GenerateImageRequest) -> None:
        self._call = call
        self._assembler = StreamAssembler(request)
        self._closed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Returns the next event.

        Raises:
            LatentwireError: The generation ended without its images; the subclass says why.
        """
        while not self._closed.is_set():
            try:
                response = await self._call.read()
                if response is grpc.aio.EOF:
                    self._assembler.finish()
                    break
                event = self._assembler.feed(cast("pb.GenerateImageResponse", response))
            except grpc.RpcError as error:
                if self._closed.is_set():
                    break
                await self.aclose()
                raise error_from_rpc(error) from None
            except asyncio.CancelledError:
                # gRPC raises this too if another task closed the stream, which is then at its end.
                task = asyncio.current_task()
                is_cancelling = task is not None and task.cancelling() > 0
                if self._closed.is_set() and not is_cancelling:
                    break
                await self.aclose()
                raise
            except BaseException:
                await self.aclose()
                raise
            if event is not None:
                return event
        self._closed.set()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream, and cancels the generation on the server unless it has ended."""
        self._closed.set()
        self._call.cancel()


class AsyncClient:
    """A client for a Latentwire server, for asyncio. Create it inside a running event loop."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        channel_options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """Creates a client. Arguments and errors as for ``Client``."""
        target = target_from(
            server, api_key=api_key, credentials=credentials, options=channel_options
        )
        self._metadata = target.metadata
        self._timeout_s = timeout_s
        if target.credentials is None:
            self._channel = grpc.aio.insecure_channel(target.address, options=target.options)
        else:
            self._channel = grpc.aio.secure_channel(
                target.address, target.credentials, options=target.options
            )
        # The async stubs are types only: at run time one class serves both kinds of channels.
        self._stub = cast("rpc.ImageGenerationAsyncStub", rpc.ImageGenerationStub(self._channel))
        self._admin = cast("rpc.ModelAdminAsyncStub", rpc.ModelAdminStub(self._channel))
        self._operations = Operations(cast("grpc.Channel", self._channel))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection. Generations that are still streaming are cancelled."""
        await self._channel.close()

    def with_api_key(self, api_key: str | None) -> AsyncClient:
        """Returns a client that sends another key over this client's connection.

        As ``Client.with_api_key``.
        """
        other = copy.copy(self)
        other._metadata = metadata_from(api_key)  # noqa: SLF001 - of the same class
        return other

    async def generate(
        self,
        prompt: str | pb.GenerateImageRequest,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Image]:
        """Generates images and returns them. As ``Client.generate``."""
        async with self.stream(prompt, timeout_s=timeout_s, **options) as events:
            return [event async for event in events if isinstance(event, Image)]

    def stream(
        self,
        prompt: str | pb.GenerateImageRequest,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """Starts a generation and returns its events. As ``Client.stream``."""
        request = build_request(prompt, options)
        call = self._stub.GenerateImage(request, timeout=timeout_s, metadata=self._metadata)
        return AsyncGenerationStream(call, request)

    async def models(self) -> tuple[Model, ...]:
        """Returns the server's models, the default model first."""
        return await self._run(self._operations.list_models())

    async def model(self, name: str = "") -> Model:
        """Returns a model by name, id or alias. As ``Client.model``."""
        return await self._run(self._operations.get_model(name))

    async def load_model(
        self,
        name: str,
        *,
        on_progress: Callable[[int, int], object] | None = None,
        timeout_s: float | None = None,
    ) -> Model:
        """Loads a model and returns it once it is ready. As ``Client.load_model``."""
        request = pb.LoadModelRequest(name=name)
        call = self._admin.LoadModel(request, timeout=timeout_s, metadata=self._metadata)
        model = None
        try:
            async for response in call:
                model = loading_step(response, on_progress)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()
        return loaded(model)

    async def unload_model(self, name: str) -> Model:
        """Unloads an idle model. As ``Client.unload_model``."""
        return await self._run(self._operations.unload_model(name))

    async def server_info(self) -> ServerInfo:
        """Returns the server's version, device, limits and load."""
        return await self._run(self._operations.get_server_info())

    async def generation(self, name: str) -> Generation:
        """Returns one of the caller's generations. As ``Client.generation``."""
        return await self._run(self._operations.get_generation(name))

    async def generations(self) -> tuple[Generation, ...]:
        """Returns the caller's queued and running generations, in the order of service."""
        return await self._run(self._operations.list_generations())

    async def cancel(self, name: str, *, timeout_s: float | None = None) -> Generation:
        """Cancels one of the caller's generations. As ``Client.cancel``."""
        return await self._run(self._operations.cancel_generation(name, timeout_s=timeout_s))

    async def wait_ready(self, timeout_s: float = 60.0, *, model: str = "") -> None:
        """Waits until the server or a model is ready to generate. As ``Client.wait_ready``."""
        await self._run(self._operations.wait_ready(timeout_s, model=model))

    async def _run(self, operation: Operation[ResultT]) -> ResultT:
        outcome: Outcome = None
        try:
            while True:
                outcome = await self._perform(resume(operation, outcome))
        except StopIteration as stop:
            result: ResultT = stop.value
            return result

    async def _perform(self, step: Step) -> Outcome:
        match step:
            case Pause(duration_s=duration_s):
                await asyncio.sleep(duration_s)
                return None
            case UnaryCall(method=method, request=request, timeout_s=timeout_s):
                if timeout_s is None:
                    timeout_s = self._timeout_s
                # Typed as a sync call, but awaitable: the channel is an asyncio one.
                call = method(request, timeout=timeout_s, metadata=self._metadata)
                try:
                    return await cast("Awaitable[Outcome]", call)
                except grpc.RpcError as error:
                    return error_from_rpc(error)
