"""Encodes prompts into conditioning, each by itself, and caches the recent ones.

Device thread only. The cache is exact: it returns the very tensors of the first time. Its keys hold
the owner, because a cache shared by all would reveal, by its speed, the prompts of other callers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from latentwire_server.engine.diffusion.trajectory import Prompts

if TYPE_CHECKING:
    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.request import Adapters, GenerationRequest
    from latentwire_server.models.protocol import Conditioning, DiffusionModel

CAPACITY_BYTES = 64 * 2**20
"""The most that cached prompts take on the device: 270 of Stable Diffusion 1.5 in float32."""

_Key = tuple[str, str, "Adapters", str, int | None, int]
"""Owner, model, adapters, prompt, clip_skip (none for a negative prompt) and num_chunks."""


class PromptEncoder:
    """Sets the conditioning of trajectories."""

    def __init__(self, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._recent: OrderedDict[_Key, Conditioning] = OrderedDict()
        self._num_bytes = 0

    def encode(self, trajectory: Trajectory) -> None:
        """Conditions ``trajectory`` on its prompts."""
        request = trajectory.request
        trajectory.condition([self._prompts(request, phase.model) for phase in trajectory.phases])

    def forget(self, model_id: str) -> None:
        """Drops the conditioning that a model, or its refiner, has made."""
        for key in [key for key in self._recent if key[1].partition("/")[0] == model_id]:
            self._num_bytes -= self._recent.pop(key).num_bytes

    def _prompts(self, request: GenerationRequest, model: DiffusionModel) -> Prompts:
        prompts = [request.prompt, *([request.negative_prompt] if request.uses_guidance else [])]
        # Of the request's own prompts alone: an image must not depend on the other requests.
        num_chunks = max(map(model.num_chunks, prompts))
        key = request.owner, model.info.id, request.adapters
        negative = None
        if request.uses_guidance:
            # clip_skip is for the prompt alone, as in StableDiffusionPipeline.
            negative = self._encoded(model, (*key, request.negative_prompt, None, num_chunks))
        text = self._encoded(model, (*key, request.prompt, request.clip_skip, num_chunks))
        return Prompts(text=text, negative=negative, num_chunks=num_chunks)

    def _encoded(self, model: DiffusionModel, key: _Key) -> Conditioning:
        _, _, _, prompt, clip_skip, num_chunks = key
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        if clip_skip is None:
            conditioning = model.encode_negative_prompt(prompt, num_chunks=num_chunks)
        else:
            conditioning = model.encode_prompt(prompt, clip_skip=clip_skip, num_chunks=num_chunks)
        self._recent[key] = conditioning
        self._num_bytes += conditioning.num_bytes
        while self._num_bytes > self._capacity_bytes:
            _, oldest = self._recent.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
        return conditioning
