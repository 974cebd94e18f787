"""The client for threads: blocking calls over one gRPC channel.

Threads may share a ``Client``. A ``GenerationStream`` belongs to one reader, but any thread may
close it. Only I/O lives here: requests and results are shared with the asyncio client.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import grpc

from latentwire._assemble import StreamAssembler
from latentwire._channel import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, metadata_from, target_from
from latentwire._events import Image
from latentwire._operations import Operations, Pause, UnaryCall, loaded, loading_step, resume
from latentwire._requests import build_request
from latentwire.errors import error_from_rpc
from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from latentwire._events import Event
    from latentwire._operations import Operation, Outcome, Step
    from latentwire._requests import GenerateOptions
    from latentwire._resources import Generation, Model, ServerInfo

ResultT = TypeVar("ResultT")


class _ResponseCall(Protocol):
    """The part of gRPC's streaming call that is used."""

    def __next__(self) -> pb.GenerateImageResponse: ...
    def cancel(self) -> object: ...


class GenerationStream:
    """The events of one generation, as they happen.

    An iterator and a context manager. Closing it before the end cancels the generation.
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

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream, and cancels the generation on the server unless it has ended."""
        self._closed.set()
        self._call.cancel()


class Client:
    """A client for a Latentwire server, with blocking calls. Threads may share it."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        channel_options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """Creates a client. It connects on its first call.

        Args:
            server: ``host:port``. A leading ``https://`` switches TLS on.
            api_key: The key to send, if the server requires one.
            credentials: TLS credentials, for certificates of your own. Switches TLS on.
            timeout_s: Time limit of every call except generations and loads, in seconds.
            channel_options: Further gRPC channel options, which override the client's own.

        Raises:
            ValueError: The address is invalid, or the key has characters that no header can
                carry.
        """
        target = target_from(
            server, api_key=api_key, credentials=credentials, options=channel_options
        )
        self._metadata = target.metadata
        self._timeout_s = timeout_s
        if target.credentials is None:
            self._channel = grpc.insecure_channel(target.address, options=target.options)
        else:
            self._channel = grpc.secure_channel(
                target.address, target.credentials, options=target.options
            )
        self._stub = rpc.ImageGenerationStub(self._channel)
        self._admin = rpc.ModelAdminStub(self._channel)
        self._operations = Operations(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Generations that are still streaming are cancelled."""
        self._channel.close()

    def with_api_key(self, api_key: str | None) -> Client:
        """Returns a client that sends another key over this client's connection.

        It need not be closed: closing this client closes both.

        Raises:
            ValueError: The key has characters that no header can carry.
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
        """Generates images and returns them in order.

        Args:
            prompt: What the images show, or a request such as ``Accepted.effective_request``.
            timeout_s: Time limit in seconds, after which the generation is cancelled. None: no
                limit.
            options: See ``GenerateOptions``.

        Raises:
            LatentwireError: The generation failed; the subclass says why.
            TypeError: An option is unknown, or its value has the wrong type.
            ValueError: A value cannot be sent.
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
        """Returns the server's models, the default model first."""
        return self._run(self._operations.list_models())

    def model(self, name: str = "") -> Model:
        """Returns a model by name, id or alias; the default model for an empty name.

        Raises:
            NotFoundError: There is no such model.
        """
        return self._run(self._operations.get_model(name))

    def load_model(
        self,
        name: str,
        *,
        on_progress: Callable[[int, int], object] | None = None,
        timeout_s: float | None = None,
    ) -> Model:
        """Loads a model and returns it once it is ready. A failed load is tried again.

        Args:
            name: Name, id or alias.
            on_progress: Called with the number of bytes loaded and the number to load in total,
                which is 0 while unknown.
            timeout_s: Time limit in seconds; the server keeps loading after it. None: no limit.

        Raises:
            AuthenticationError: The key does not permit administration.
            UnavailableError: The model cannot be loaded, or there is no room for it.
        """
        request = pb.LoadModelRequest(name=name)
        call = self._admin.LoadModel(request, timeout=timeout_s, metadata=self._metadata)
        model = None
        try:
            for response in call:
                model = loading_step(response, on_progress)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()
        return loaded(model)

    def unload_model(self, name: str) -> Model:
        """Unloads an idle model, given by name, id or alias.

        Raises:
            AuthenticationError: The key does not permit administration.
            UnavailableError: The model is in use or is being loaded.
        """
        return self._run(self._operations.unload_model(name))

    def server_info(self) -> ServerInfo:
        """Returns the server's version, device, limits and load."""
        return self._run(self._operations.get_server_info())

    def generation(self, name: str) -> Generation:
        """Returns one of the caller's generations, by name or id.

        Raises:
            NotFoundError: There is no such generation, or it belongs to another caller.
        """
        return self._run(self._operations.get_generation(name))

    def generations(self) -> tuple[Generation, ...]:
        """Returns the caller's queued and running generations, in the order of service."""
        return self._run(self._operations.list_generations())

    def cancel(self, name: str, *, timeout_s: float | None = None) -> Generation:
        """Cancels one of the caller's generations, by name or id. An ended one stays as it is.

        Raises:
            NotFoundError: There is no such generation, or it belongs to another caller.
        """
        return self._run(self._operations.cancel_generation(name, timeout_s=timeout_s))

    def wait_ready(self, timeout_s: float = 60.0, *, model: str = "") -> None:
        """Waits until the server, or one of its models, is ready to generate.

        Raises:
            UnavailableError: It was not ready within ``timeout_s`` seconds.
            NotFoundError: There is no such model.
        """
        self._run(self._operations.wait_ready(timeout_s, model=model))

    def _run(self, operation: Operation[ResultT]) -> ResultT:
        outcome: Outcome = None
        try:
            while True:
                outcome = self._perform(resume(operation, outcome))
        except StopIteration as stop:
            result: ResultT = stop.value
            return result

    def _perform(self, step: Step) -> Outcome:
        match step:
            case Pause(duration_s=duration_s):
                time.sleep(duration_s)
                return None
            case UnaryCall(method=method, request=request, timeout_s=timeout_s):
                if timeout_s is None:
                    timeout_s = self._timeout_s
                try:
                    return method(request, timeout=timeout_s, metadata=self._metadata)
                except grpc.RpcError as error:
                    return error_from_rpc(error)
