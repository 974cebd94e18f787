"""Adapters of the requests that run: loaded while others are drawn, kept as long as memory allows.

Device thread only; loading runs in a thread of its own, one set of adapters at a time. A *set* is a
model with certain adapters in it; at which scales is a matter of each call. Sets that a request
waits for or runs with stay; of the others, those used longest ago go when room is needed. What does
not fit yet waits, and nobody who comes later with adapters overtakes it into memory.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentwire_server.engine.device.faults import free_memory
from latentwire_server.engine.errors import LoraUnusable
from latentwire_server.models.errors import LoraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.models.protocol import AdapterSet, DiffusionModel

_Key = tuple[str, tuple[str, ...]]
"""A model's id, and its adapters'."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    num_bytes: int
    loading: Future[AdapterSet]
    users: set[str] = field(default_factory=set)
    """Ids of the generations that it may not be taken away from."""


class AdapterMemory:
    """The sets of adapters that are loaded, within a bound."""

    def __init__(self, *, capacity_bytes: int, on_loaded: Callable[[], None]) -> None:
        """Takes the bound, and what wakes the device thread when a set has been loaded."""
        self._capacity_bytes = capacity_bytes
        self._on_loaded = on_loaded
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="latentwire-adapters")
        self._is_full = False
        self.num_loads = 0
        """Sets that were loaded."""

    @property
    def num_bytes(self) -> int:
        """What all sets take."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def ready(
        self, waiting: Iterable[Generation], model_of: Callable[[str], DiffusionModel]
    ) -> list[str]:
        """Returns who of the waiting can start, and begins to load for the others.

        Args:
            waiting: in the order in which room is given.
            model_of: the model of an id.
        """
        self._is_full = False
        return [
            generation.id
            for generation in waiting
            if not generation.request.adapters
            or self._is_ready(generation, model_of(generation.request.model))
        ]

    def model_for(self, generation: Generation, model: DiffusionModel) -> DiffusionModel:
        """Returns the model that a ready generation is drawn with.

        Raises:
            LoraUnusable: an adapter cannot be loaded.
        """
        adapters = generation.request.adapters
        if not adapters:
            return model
        key = _key(generation)
        try:
            return self._entries[key].loading.result().scaled(dict(adapters))
        except LoraError as error:
            # Whoever comes next may find it mended.
            self._entries.pop(key, None)
            raise LoraUnusable(error.id, error.reason) from None
        except Exception:
            self._entries.pop(key, None)
            raise

    def release_all_but(self, ids: set[str]) -> None:
        """Takes in that only these generations still wait or run."""
        for entry in self._entries.values():
            entry.users &= ids

    def forget(self, model_id: str) -> None:
        """Lets go of a model's sets, which hold on to its weights; nobody needs them any more."""
        for key in [key for key in self._entries if key[0] == model_id]:
            self._entries.pop(key).loading.cancel()

    def close(self) -> None:
        """Loads nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_ready(self, generation: Generation, model: DiffusionModel) -> bool:
        key = _key(generation)
        entry = self._entries.get(key)
        is_user = entry is not None and generation.id in entry.users
        if self._is_full and not is_user:
            return False
        if entry is None:
            entry = self._started(key, model)
            if entry is None:
                self._is_full = True
                return False
        self._entries.move_to_end(key)
        entry.users.add(generation.id)
        return entry.loading.done()

    def _started(self, key: _Key, model: DiffusionModel) -> _Entry | None:
        """Begins to load a set; returns nothing while there is no room."""
        sizes = {lora.id: lora.num_bytes for lora in model.info.loras}
        num_bytes = sum(sizes.get(id_, 0) for id_ in key[1])
        if not self._make_room(num_bytes):
            return None
        self.num_loads += 1
        loading = self._pool.submit(model.with_loras, key[1])
        loading.add_done_callback(lambda _: self._on_loaded())
        entry = self._entries[key] = _Entry(num_bytes=num_bytes, loading=loading)
        return entry

    def _make_room(self, num_bytes: int) -> bool:
        """Returns whether so much fits, taking away what nobody uses if that makes it fit."""
        unused = [key for key, entry in self._entries.items() if not entry.users]
        free = self._capacity_bytes - self.num_bytes
        if free + sum(self._entries[key].num_bytes for key in unused) < num_bytes:
            return False
        has_dropped = False
        for key in unused:
            if free >= num_bytes:
                break
            free += self._entries.pop(key).num_bytes
            has_dropped = True
        if has_dropped:
            free_memory()
        return True


def _key(generation: Generation) -> _Key:
    request = generation.request
    return request.model, tuple(id_ for id_, _ in request.adapters)
