"""What the service adds to a step: its engine with nothing around it, then behind gRPC."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import latentwire
from benchmarks.summary import spread
from latentwire_server.engine.engine import Engine
from latentwire_server.engine.events import Completed
from latentwire_server.engine.settings import EngineSettings
from latentwire_server.models.loading.model_files import ModelFiles
from latentwire_server.models.model_options import ModelEntry
from latentwire_server.requests.completion import Assigned, complete
from latentwire_server.requests.draft import RequestDraft
from latentwire_server.settings.files import user_cache

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from benchmarks.systems import Service
    from benchmarks.workload import Kind

_NUM_REQUESTS = 3
_SLOWNESS = 2.0
"""How many steps the slow reader takes for each event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of one step, the median of some requests, in one round."""

    round: int
    engine_step_s: float
    service_step_s: float

    @property
    def share(self) -> float:
        """What the service adds, as a part of the engine's step."""
        return self.service_step_s / self.engine_step_s - 1


class BareEngine:
    """The engine and its model in this process."""

    def __init__(self, folder: Path, *, service: Service) -> None:
        """Takes a diffusers folder and the service whose settings hold here too."""
        info = service.info
        source = ModelEntry(id="bare", source=str(folder), denoiser_backend=info.denoiser_backend)
        self._engine = Engine(EngineSettings(max_rows=info.max_rows))
        # That thread ends, and with it the threads it has for torch: the engine's own must not have
        # to share the cores with them.
        with ThreadPoolExecutor(1) as loading:
            self._model = loading.submit(
                lambda: ModelFiles.open(source).load(denoiser_cache=user_cache() / "openvino")
            ).result()

    async def __aenter__(self) -> Self:
        """Starts the engine's thread and compiles the model there."""
        await self._engine.start()
        await asyncio.to_thread(self._engine.models.warm_up, self._model)
        self._engine.models.add(self._model)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends it."""
        await self._engine.aclose()

    async def step_s(self, kind: Kind, *, seed: int) -> float:
        """Draws one request; returns the seconds of a step."""
        draft = RequestDraft(
            prompt=f"{kind.prompt} {seed}",
            width=kind.width,
            height=kind.height,
            num_inference_steps=kind.num_inference_steps,
            guidance_scale=kind.guidance_scale,
            scheduler_id=kind.scheduler,
            seed=seed,
        )
        assigned = Assigned(generation_id=f"bare {seed}", owner="", seed=seed)
        request = complete(draft, self._model, self._model.info, assigned=assigned)
        denoising_s = 0.0
        async for event in self._engine.submit(request, spec=self._model):
            if isinstance(event, Completed):
                denoising_s = event.timings.denoising_s
        return denoising_s / kind.num_inference_steps


async def measure_overhead(
    kind: Kind, service: Service, engine: BareEngine, *, number: int
) -> Overhead:
    """Draws by both in turns; the service's reader is slow, and so gets progress events late.

    Args:
        kind: What is drawn.
        service: The server, idle.
        engine: The engine without it.
        number: Of the round.
    """
    engine_s, service_s = [], []
    first = number * _NUM_REQUESTS
    for seed in range(first, first + _NUM_REQUESTS):
        engine_s.append(await engine.step_s(kind, seed=seed))
        service_s.append(
            await _service_step_s(kind, service, seed=seed, pause_s=_SLOWNESS * engine_s[-1])
        )
    return Overhead(
        round=number, engine_step_s=spread(engine_s)[1], service_step_s=spread(service_s)[1]
    )


async def _service_step_s(kind: Kind, service: Service, *, seed: int, pause_s: float) -> float:
    stream = service.client.stream(
        f"{kind.prompt} {seed}",
        width=kind.width,
        height=kind.height,
        num_inference_steps=kind.num_inference_steps,
        guidance_scale=kind.guidance_scale,
        scheduler=kind.scheduler,
        seed=seed,
    )
    denoising_s = 0.0
    async with stream as events:
        async for event in events:
            await asyncio.sleep(pause_s)
            if isinstance(event, latentwire.Completed):
                denoising_s = event.timings.denoising_s
    return denoising_s / kind.num_inference_steps
