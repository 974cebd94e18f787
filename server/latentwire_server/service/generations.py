"""What the RPCs do, as coroutines and async generators that raise domain errors.

Knows messages, not transports: an adapter passes the caller and the time left, and turns domain
errors into statuses. Event loop only; slow work runs on threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert import events, requests, resources
from latentwire_server.convert.times import duration, timestamp
from latentwire_server.engine.errors import Draining, GenerationNotFound
from latentwire_server.engine.events import Event, Image
from latentwire_server.engine.queue.admission import DRAINING_RETRY_S
from latentwire_server.requests.completion import Assigned, complete
from latentwire_server.requests.request_warnings import warnings_of
from latentwire_server.requests.validation import canonical_uuid
from latentwire_server.service.paging import page_of, required_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping

    from latentwire_server.engine.engine import Engine
    from latentwire_server.engine.handover.stream import GenerationStream
    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.registry import ModelRegistry
    from latentwire_server.requests.refused_words import RefusedWords
    from latentwire_server.service.recordings import Recordings

    Responses = AsyncGenerator[pb.GenerateImageResponse]

_SEED_BITS: Final = 32
_BIG_FILE_BYTES: Final = 1_000_000
"""Hashing more than this takes milliseconds: too long for the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The part of GetServerInfo's answer that does not change."""

    version: str
    max_request_bytes: int
    settings: EngineSettings
    start_time: float
    library_versions: Mapping[str, str]


class GenerationService:
    """Generates images, and answers questions about generations, models and the server."""

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        *,
        registry: ModelRegistry,
        recordings: Recordings,
        facts: ServerFacts,
        refused_words: RefusedWords | None = None,
    ) -> None:
        self._engine = engine
        self._recordings = recordings
        self._catalogue = catalogue
        self._registry = registry
        self._facts = facts
        self._refused_words = refused_words
        self._num_open = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def generate(
        self, message: pb.GenerateImageRequest, *, owner: str, time_remaining_s: float | None
    ) -> Responses:
        """Returns a generator of every event of a generation. Closing it leaves the generation.

        A generation without readers is cancelled, unless its ``disconnect_policy`` is CONTINUE.
        """
        opening = self._open(message, owner=owner, time_remaining_s=time_remaining_s)
        return self._delivered(opening)

    async def _delivered(self, opening: Awaitable[Responses]) -> Responses:
        self._num_open += 1
        self._all_closed.clear()
        try:
            async with aclosing(await opening) as responses:
                async for response in responses:
                    yield response
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._all_closed.set()

    async def _open(
        self, message: pb.GenerateImageRequest, *, owner: str, time_remaining_s: float | None
    ) -> Responses:
        """Starts a generation, or joins the one that has the same request id.

        A coroutine that returns a generator: the generator may wait long, and must hold neither the
        caller's files nor the model.
        """
        request_id = canonical_uuid(message.request_id)
        if request_id is None or message.validate_only:
            return await self._start(message, owner=owner, time_remaining_s=time_remaining_s)
        if message.ByteSize() < _BIG_FILE_BYTES:
            fingerprint = requests.fingerprint(message)
        else:
            fingerprint = await asyncio.to_thread(requests.fingerprint, message)
        key, after = (owner, request_id), message.resume_after_sequence
        # From here to the start nothing is awaited: of two that arrive at once, one starts.
        recording = self._recordings.find(key, fingerprint=fingerprint)
        if recording is None:
            if after:
                raise GenerationNotFound(name=request_id)
            recording = self._recordings.start(
                key,
                # A deadline ends its own call, and not a generation that others may join.
                self._start(message, owner=owner, time_remaining_s=None),
                fingerprint=fingerprint,
                goes_on_alone=message.disconnect_policy == pb.DISCONNECT_POLICY_CONTINUE,
            )
        recording.check(after)
        return recording.read(after=after)

    async def _start(
        self, message: pb.GenerateImageRequest, *, owner: str, time_remaining_s: float | None
    ) -> Responses:
        """Checks a request and submits it; closing what it returns cancels the generation."""
        deadline = None if time_remaining_s is None else time.monotonic() + time_remaining_s
        if self._engine.status().is_draining:
            raise Draining(retry_after_s=DRAINING_RETRY_S)
        may_load = not message.validate_only
        spec, info = await self._registry.spec(message.model, may_load=may_load)
        request = await asyncio.to_thread(
            complete,
            requests.draft_from_proto(message),
            spec,
            info,
            assigned=Assigned(
                generation_id=uuid.uuid4().hex,
                owner=owner,
                seed=secrets.randbits(_SEED_BITS),
                deadline=deadline,
            ),
            refused_words=self._refused_words,
        )
        # Tokenizing a long prompt takes milliseconds too.
        warnings = await asyncio.to_thread(warnings_of, request, spec)
        if message.validate_only:
            return _accepted_alone(events.accepted_to_proto(request, warnings))
        stream = self._engine.submit(request, warnings=warnings, spec=spec)
        self._registry.want(request.model)
        return self._responses(stream, request)

    async def _responses(self, stream: GenerationStream, request: GenerationRequest) -> Responses:
        name = resources.generation_name(request.generation_id)
        sequence = 0
        try:
            async with stream:
                async for event in stream:
                    for response in events.responses(
                        event,
                        max_data_bytes=request.output.max_data_bytes,
                        sha256=await _sha256(event),
                    ):
                        sequence += 1
                        yield _numbered(response, sequence=sequence, name=name)
        finally:
            self._registry.used(request.model)

    async def aclose(self) -> None:
        """Cancels generations without a reader, and forgets those that could be repeated."""
        await self._recordings.aclose()

    async def wait_until_delivered(self) -> None:
        """Waits until no client is being sent the events of a generation."""
        await self._all_closed.wait()

    def get_generation(
        self, message: pb.GetGenerationRequest, *, owner: str
    ) -> pb.GetGenerationResponse:
        """Returns a generation of the caller."""
        snapshot = self._engine.get(_id_of(message), owner=owner)
        return pb.GetGenerationResponse(generation=resources.generation_to_proto(snapshot))

    def list_generations(
        self, message: pb.ListGenerationsRequest, *, owner: str
    ) -> pb.ListGenerationsResponse:
        """Returns the caller's queued and running generations, and how many there are in all."""
        snapshots, next_page_token = page_of(
            self._engine.list(owner=owner),
            page_size=message.page_size,
            page_token=message.page_token,
        )
        load = self._engine.status()
        return pb.ListGenerationsResponse(
            generations=[resources.generation_to_proto(snapshot) for snapshot in snapshots],
            next_page_token=next_page_token,
            total_count=load.queued_count + load.running_count,
        )

    def cancel_generation(
        self, message: pb.CancelGenerationRequest, *, owner: str
    ) -> pb.CancelGenerationResponse:
        """Cancels a generation of the caller."""
        snapshot = self._engine.cancel(_id_of(message), owner=owner)
        return pb.CancelGenerationResponse(generation=resources.generation_to_proto(snapshot))

    def list_models(self, message: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Returns the models, the default one first."""
        models, next_page_token = page_of(
            self._catalogue.snapshots(), page_size=message.page_size, page_token=message.page_token
        )
        return pb.ListModelsResponse(
            models=map(resources.model_to_proto, models), next_page_token=next_page_token
        )

    def get_model(self, message: pb.GetModelRequest) -> pb.GetModelResponse:
        """Returns one model."""
        snapshot = self._catalogue.snapshot(message.name)
        return pb.GetModelResponse(model=resources.model_to_proto(snapshot))

    def get_server_info(self, message: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:  # noqa: ARG002
        """Returns the server's version, limits and load."""
        facts = self._facts
        load = self._engine.status(default_model=self._catalogue.default_id)
        model = self._catalogue.default_model
        return pb.GetServerInfoResponse(
            version=facts.version,
            device=model.device_name if model else "",
            dtype=model.dtype_name if model else "",
            batching=facts.settings.batching.value,
            max_rows=load.max_rows,
            max_request_bytes=facts.max_request_bytes,
            max_queued=facts.settings.max_queued,
            queued_count=load.queued_count,
            running_count=load.running_count,
            draining=load.is_draining,
            start_time=timestamp(facts.start_time),
            library_versions=facts.library_versions,
            denoiser_call_count=load.denoiser_call_count,
            denoiser_row_count=load.denoiser_row_count,
            denoiser_place_count=load.denoiser_place_count,
            denoiser_backend=model.backend_name if model else "",
            compiled_shapes=model.compiled_shapes if model else (),
            estimated_wait=duration(self._engine.wait_s()),
        )


def _id_of(message: pb.GetGenerationRequest | pb.CancelGenerationRequest) -> str:
    return required_name(message.name, collection="generations").removeprefix("generations/")


async def _accepted_alone(accepted: pb.Accepted) -> Responses:
    yield _numbered(pb.GenerateImageResponse(accepted=accepted), sequence=1, name="")


def _numbered(
    response: pb.GenerateImageResponse, *, sequence: int, name: str
) -> pb.GenerateImageResponse:
    response.generation = name
    response.sequence = sequence
    response.event_time.CopyFrom(timestamp(time.time()))
    return response


async def _sha256(event: Event) -> bytes:
    # An image that is withheld has no bytes and no digest.
    if not isinstance(event, Image) or not event.data:
        return b""
    if len(event.data) < _BIG_FILE_BYTES:
        return hashlib.sha256(event.data).digest()
    return (await asyncio.to_thread(hashlib.sha256, event.data)).digest()
