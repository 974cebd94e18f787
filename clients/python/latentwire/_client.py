"""The client for threads: blocking calls over one gRPC channel.

``Client`` may be shared by threads; a ``GenerationStream`` belongs to one reader, but any thread
may close it. Only I/O is here: what is sent and what comes out is shared with the asyncio client.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import grpc

from latentwire import _operations
from latentwire._assemble import StreamAssembler
from latentwire._channel import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    Target,
    metadata_from,
    target_from,
)
from latentwire._events import Image
from latentwire._requests import build_request
from latentwire.errors import error_from_rpc
from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Unpack

    from latentwire._events import Event
    from latentwire._requests import GenerateOptions
    from latentwire._resources import Generation, Model, ServerInfo

ResultT = TypeVar("ResultT")


class _ResponseCall(Protocol):
    """What gRPC returns for a streaming call."""

    def __next__(self) -> pb.GenerateImageResponse: ...
    def cancel(self) -> object: ...


class GenerationStream:
    """The events of one generation, as they happen.

    An iterator and a context manager; closing it before the end cancels the generation.
    """

    def __init__(self, call: _ResponseCall, request: pb.GenerateImageRequest) -> None:
        self._call = call
        self._assembler = StreamAssembler(request)
        self._closed = threading.Event()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Returns the next event.

        Raises:
            LatentwireError: The generation ended without its images; the subclass says why.
        """
        while not self._closed.is_set():
            try:
                event = self._assembler.feed(next(self._call))
            except StopIteration:
                self._closed.set()
                self._assembler.finish()
                raise
            except grpc.RpcError as error:
                if self._closed.is_set():
                    break
                self.close()
                raise error_from_rpc(error) from None
            except BaseException:
                self.close()
                raise
            if event is not None:
                return event
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; a generation that has not ended is cancelled on the server."""
        self._closed.set()
        self._call.cancel()


class Client:
    """Calls a Latentwire server and waits for what it answers."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        channel_options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """Makes a client; it connects when it is first needed.

        Args:
            server: ``host:port``; with ``https://`` before it, TLS is used.
            api_key: The caller's key, when the server asks for one.
            credentials: For TLS with certificates of one's own.
            timeout_s: For every call but generations.
            channel_options: Further gRPC channel options.
        """
        target = target_from(
            server, api_key=api_key, credentials=credentials, options=channel_options
        )
        self._metadata = target.metadata
        self._timeout_s = timeout_s
        self._channel = _open_channel(target)
        self._stub = rpc.ImageGenerationStub(self._channel)
        self._admin = rpc.ModelAdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; generations still streaming are cancelled."""
        self._channel.close()

    def with_api_key(self, api_key: str | None) -> Client:
        """Returns a client that calls with another key over this one's connection.

        It needs no closing: closing this one closes both.
        """
        other = copy.copy(self)
        other._metadata = metadata_from(api_key)  # noqa: SLF001 - of the same class
        return other

    def generate(
        self,
        prompt: str | pb.GenerateImageRequest,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Image]:
        """Draws images and returns them.

        Args:
            prompt: What to draw, or a request such as ``Accepted.effective_request``.
            timeout_s: Most time to wait; the generation is cancelled then. None: no limit.
            options: See ``GenerateOptions``.

        Raises:
            LatentwireError: There are no images; the subclass says why.
            TypeError: There is no such option, or a value is of the wrong type.
            ValueError: A value can't be sent.
        """
        with self.stream(prompt, timeout_s=timeout_s, **options) as events:
            return [event for event in events if isinstance(event, Image)]

    def stream(
        self,
        prompt: str | pb.GenerateImageRequest,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationStream:
        """Starts a generation and returns its events. Arguments and errors as for ``generate``."""
        request = build_request(prompt, options)
        call = self._stub.GenerateImage(request, timeout=timeout_s, metadata=self._metadata)
        return GenerationStream(call, request)

    def models(self) -> tuple[Model, ...]:
        """Returns the server's models, the default one first."""
        return self._run(_operations.list_models())

    def model(self, name: str = "") -> Model:
        """Returns a model by name, id or alias; without a name the default one."""
        return self._run(_operations.get_model(name))

    def load_model(
        self,
        name: str,
        *,
        on_progress: Callable[[int, int], object] | None = None,
        timeout_s: float | None = None,
    ) -> Model:
        """Loads a model, again if that failed before, and returns it once it is ready.

        Args:
            name: Name, id or alias.
            on_progress: Is told the bytes that are loaded, and those to load in all, 0 if unknown.
            timeout_s: Most time to wait; the server goes on loading. None: no limit.

        Raises:
            AuthenticationError: The key is none for administration.
            UnavailableError: The model cannot be loaded, or there is no room for it.
        """
        request = pb.LoadModelRequest(name=name)
        call = self._admin.LoadModel(request, timeout=timeout_s, metadata=self._metadata)
        model = None
        try:
            for response in call:
                model = _operations.loading_step(response, on_progress)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()
        return _operations.loaded(model)

    def unload_model(self, name: str) -> Model:
        """Unloads a model of which nothing is in flight.

        Raises:
            AuthenticationError: The key is none for administration.
            UnavailableError: Generations need it, or it is being loaded.
        """
        return self._run(_operations.unload_model(name))

    def server_info(self) -> ServerInfo:
        """Returns the server's version, device, limits and load."""
        return self._run(_operations.get_server_info())

    def generation(self, name: str) -> Generation:
        """Returns one of the caller's generations by its name or id."""
        return self._run(_operations.get_generation(name))

    def generations(self) -> tuple[Generation, ...]:
        """Returns the caller's generations that are queued or running, in the order served."""
        return self._run(_operations.list_generations())

    def cancel(self, name: str, *, timeout_s: float | None = None) -> Generation:
        """Cancels one of the caller's generations by its name or id; an ended one stays so."""
        return self._run(_operations.cancel_generation(name, timeout_s=timeout_s))

    def wait_ready(self, timeout_s: float = 60.0, *, model: str = "") -> None:
        """Waits until the server, or one of its models, can draw.

        Raises:
            UnavailableError: It could not within the time.
            NotFoundError: There is no such model.
        """
        self._run(_operations.wait_ready(timeout_s, model=model))

    def _run(self, operation: _operations.Operation[ResultT]) -> ResultT:
        outcome: _operations.Outcome = None
        try:
            while True:
                outcome = self._perform(_operations.resume(operation, outcome))
        except StopIteration as stop:
            result: ResultT = stop.value
            return result

    def _perform(self, step: _operations.Step) -> _operations.Outcome:
        match step:
            case _operations.Pause(duration_s=duration_s):
                time.sleep(duration_s)
                return None
            case _operations.UnaryCall(path=path, request=request, timeout_s=timeout_s):
                method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
                method = self._channel.unary_unary(path)
                if timeout_s is None:
                    timeout_s = self._timeout_s
                try:
                    return method(request, timeout=timeout_s, metadata=self._metadata)
                except grpc.RpcError as error:
                    return error_from_rpc(error)


def _open_channel(target: Target) -> grpc.Channel:
    if target.credentials is None:
        return grpc.insecure_channel(target.address, options=target.options)
    return grpc.secure_channel(target.address, target.credentials, options=target.options)
