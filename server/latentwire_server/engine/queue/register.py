"""The register of all generations: the active ones, and the last ones that ended.

Event loop only. Reads no clock and starts nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import GenerationNotFound
from latentwire_server.engine.snapshots import GenerationState

if TYPE_CHECKING:
    from latentwire_server.engine.handover.generation import Generation

REMEMBERED = 256
"""How many ended generations can still be looked up. Each holds up to 64 kB of prompts."""


class Register:
    """Finds generations by id and owner, and orders those that wait."""

    def __init__(self) -> None:
        self._active: dict[str, Generation] = {}
        self._ended: OrderedDict[str, Generation] = OrderedDict()

    def add(self, generation: Generation) -> None:
        """Adds a new generation."""
        self._active[generation.id] = generation

    def find(self, generation_id: str, *, owner: str) -> Generation:
        """Returns a generation of ``owner``.

        Raises:
            GenerationNotFound: There is none, or it has another owner; callers cannot tell which.
        """
        found = self._active.get(generation_id) or self._ended.get(generation_id)
        if found is None or found.request.owner != owner:
            raise GenerationNotFound(name=generation_id)
        return found

    def sweep(self) -> None:
        """Moves ended generations out of the active ones, and drops the oldest of them."""
        for generation in [one for one in self._active.values() if one.is_ended]:
            del self._active[generation.id]
            generation.drop_source_pixels()
            self._ended[generation.id] = generation
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    @property
    def active(self) -> list[Generation]:
        """The generations that have not ended."""
        return [one for one in self._active.values() if not one.is_ended]

    @property
    def running(self) -> list[Generation]:
        """The running generations, in order of arrival."""
        return [one for one in self._active.values() if one.state is GenerationState.RUNNING]

    @property
    def queued(self) -> list[Generation]:
        """The generations that wait for the device, in the order of service."""
        return [one for one in self._waiting if not one.waits_for_model]

    @property
    def waiting_for_models(self) -> list[Generation]:
        """The generations that wait for their model to be loaded, in the order of service."""
        return [one for one in self._waiting if one.waits_for_model]

    @property
    def _waiting(self) -> list[Generation]:
        waiting = [one for one in self._active.values() if one.state is GenerationState.QUEUED]
        return sorted(waiting, key=lambda generation: generation.order)

    def ahead_count(self, generation: Generation) -> int:
        """Returns how many queued generations are served before this one; 0 once it runs."""
        if generation.state is not GenerationState.QUEUED:
            return 0
        return sum(other.order < generation.order for other in self.queued)
