"""The service's engine in the benchmark's own process, without gRPC around it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

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

    from benchmarks.systems.service import Service
    from benchmarks.workload import Kind


class BareEngine:
    """An engine with one model, set up like a service's."""

    def __init__(self, folder: Path, *, service: Service) -> None:
        """Loads the diffusers folder with the settings of the service."""
        info = service.info
        entry = ModelEntry(id="bare", source=str(folder), denoiser_backend=info.denoiser_backend)
        self._engine = Engine(EngineSettings(max_rows=info.max_rows))
        # This thread ends, and torch's worker threads with it: the engine's own thread must not
        # have to share the cores with them.
        with ThreadPoolExecutor(1) as loading:
            self._model = loading.submit(
                lambda: ModelFiles.open(entry).load(denoiser_cache=user_cache() / "openvino")
            ).result()

    async def __aenter__(self) -> Self:
        """Starts the engine's device thread and compiles the model there."""
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
        """Stops the engine."""
        await self._engine.aclose()

    async def step_s(self, kind: Kind, *, seed: int) -> float:
        """Generates one request; returns the seconds per step."""
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
