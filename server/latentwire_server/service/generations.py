"""What the RPCs do, as coroutines and async generators that raise domain errors.

Knows messages, not transports: an adapter tells who calls, what time is left, and turns domain
errors into statuses. Event loop only; what may take long goes to a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert import events, requests, resources
from latentwire_server.convert.times import duration, timestamp
from latentwire_server.engine.errors import (
    Draining,
    GenerationNotFound,
)
from latentwire_server.engine.events import Event, Image
from latentwire_server.engine.events import Warning as RequestWarning
from latentwire_server.engine.queue.admission import DRAINING_RETRY_S
from latentwire_server.requests import validation
from latentwire_server.requests.completion import complete, examined
from latentwire_server.service.paging import id_of, page_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

    from latentwire_server.engine.engine import Engine
    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.registry import ModelRegistry
    from latentwire_server.requests.refused_words import RefusedWords
    from latentwire_server.service.recordings import Key, Recordings

_SEED_BITS: Final = 32
_BIG_FILE_BYTES: Final = 1_000_000
"""Hashing more than this takes milliseconds, in which the event loop serves nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What GetServerInfo tells that does not change."""

    version: str
    max_request_bytes: int
    settings: EngineSettings
    start_time: float
    library_versions: Mapping[str, str]


class GenerationService:
    """Serves generations and tells about models."""

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
        """Takes who draws, who knows, brings and repeats, and what is known and refused."""
        self._engine = engine
        self._recordings = recordings
        self._catalogue = catalogue
        self._registry = registry
        self._facts = facts
        self._refused_words = refused_words
        self._num_open = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    async def generate(
        self, message: pb.GenerateImageRequest, *, owner: str, time_remaining_s: float | None
    ) -> AsyncGenerator[pb.GenerateImageResponse]:
        """Draws, and yields every event. Closing the generator leaves the generation.

        Left by everybody, one is cancelled, unless its ``disconnect_policy`` says otherwise.
        """
        request_id = validation.canonical_uuid(message.request_id)
        with self._counted():
            if request_id is None or message.validate_only:
                responses = self._drawn(message, owner=owner, time_remaining_s=time_remaining_s)
            else:
                responses = await self._recorded(message, (owner, request_id))
            async with aclosing(responses):
                async for response in responses:
                    yield response

    async def aclose(self) -> None:
        """Ends what is drawn without a reader, and forgets what could be asked for again."""
        await self._recordings.aclose()

    async def _recorded(
        self, message: pb.GenerateImageRequest, key: Key
    ) -> AsyncGenerator[pb.GenerateImageResponse]:
        """Returns the events of the generation that this request is a repeat of, or begins."""
        _, message.request_id = key
        after, message.resume_after_sequence = message.resume_after_sequence, 0
        if message.ByteSize() < _BIG_FILE_BYTES:
            fingerprint = requests.fingerprint(message)
        else:
            fingerprint = await asyncio.to_thread(requests.fingerprint, message)
        # From here to the start nothing is awaited: of two that come at once, one begins.
        recording = self._recordings.find(key, fingerprint=fingerprint)
        if recording is None and after:
            raise GenerationNotFound(name=message.request_id)
        if recording is None:
            policy = message.disconnect_policy
            recording = self._recordings.start(
                key,
                # A deadline ends its own call, and not what others may join.
                self._drawn(message, owner=key[0], time_remaining_s=None),
                fingerprint=fingerprint,
                goes_on_alone=policy == pb.DISCONNECT_POLICY_CONTINUE,
            )
        else:
            message.Clear()
        recording.check(after)
        return recording.read(after=after)

    async def _drawn(
        self, message: pb.GenerateImageRequest, *, owner: str, time_remaining_s: float | None
    ) -> AsyncGenerator[pb.GenerateImageResponse]:
        """Draws, and yields every event. Closing the generator cancels the generation."""
        deadline = None if time_remaining_s is None else time.monotonic() + time_remaining_s
        if self._engine.status().is_draining:
            raise Draining(retry_after_s=DRAINING_RETRY_S)
        is_only_validated = message.validate_only
        spec, info = await self._registry.spec(message.model, may_load=not is_only_validated)
        completed = partial(
            complete,
            requests.draft_from_proto(message),
            info,
            generation_id=uuid.uuid4().hex,
            owner=owner,
            random_seed=secrets.randbits(_SEED_BITS),
            deadline=deadline,
            refused_words=self._refused_words,
        )
        # The caller's files may be large, and a generation may wait long.
        message.Clear()
        request, warnings = await asyncio.to_thread(examined, completed, spec)
        del completed
        if is_only_validated:
            accepted = events.accepted_to_proto(request, warnings)
            yield _numbered(pb.GenerateImageResponse(accepted=accepted), sequence=1, name="")
            return
        running = self._run(request, warnings, spec)
        # It may be the loaded model itself, whose memory is to go back once it is unloaded.
        del spec
        async with aclosing(running) as responses:
            async for response in responses:
                yield response

    async def _run(
        self,
        request: GenerationRequest,
        warnings: Sequence[RequestWarning],
        spec: ModelSpec,
    ) -> AsyncGenerator[pb.GenerateImageResponse]:
        name = resources.generation_name(request.generation_id)
        sequence = 0
        stream = self._engine.submit(request, warnings=warnings, spec=spec)
        self._registry.want(request.model)
        del spec
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

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._num_open += 1
        self._all_closed.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._all_closed.set()

    async def wait_until_delivered(self) -> None:
        """Returns once no generation's events are on their way to a client any more."""
        await self._all_closed.wait()

    def get_generation(
        self, message: pb.GetGenerationRequest, *, owner: str
    ) -> pb.GetGenerationResponse:
        """Returns a generation of the caller."""
        id_ = id_of(message.name, collection="generations")
        snapshot = self._engine.get(id_, owner=owner)
        return pb.GetGenerationResponse(generation=resources.generation_to_proto(snapshot))

    def list_generations(
        self, message: pb.ListGenerationsRequest, *, owner: str
    ) -> pb.ListGenerationsResponse:
        """Returns what the caller has queued and running, and how much everybody has."""
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
        id_ = id_of(message.name, collection="generations")
        snapshot = self._engine.cancel(id_, owner=owner)
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
        """Returns what the server is and how busy it is."""
        facts = self._facts
        load = self._engine.status(default_model=self._catalogue.default_id)
        wait_s = self._engine.wait_s()
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
            estimated_wait=None if wait_s is None else duration(wait_s),
        )


def _numbered(
    response: pb.GenerateImageResponse, *, sequence: int, name: str
) -> pb.GenerateImageResponse:
    response.generation = name
    response.sequence = sequence
    response.event_time.CopyFrom(timestamp(time.time()))
    return response


async def _sha256(event: Event) -> bytes:
    # What is withheld has no bytes, and no digest of them.
    if not isinstance(event, Image) or not event.data:
        return b""
    if len(event.data) < _BIG_FILE_BYTES:
        return hashlib.sha256(event.data).digest()
    return (await asyncio.to_thread(hashlib.sha256, event.data)).digest()
