"""The LoRA adapters of the requests: loaded beside running generations, kept while memory allows.

Device thread only; loading runs on a thread of its own, one set of adapters at a time. A *set* is a
model with certain adapters in it; the scales are set by each call. A set that a waiting or running
generation uses stays; of the others, the least recently used is dropped when room is needed. A
generation whose set does not fit yet waits, and no later one with adapters overtakes it.
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
"""The ids of a model and of its adapters."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    num_bytes: int
    loading: Future[AdapterSet]
    users: set[str] = field(default_factory=set)
    """Ids of the generations that wait for the set or run with it."""


class AdapterMemory:
    """The loaded sets of adapters, within a bound."""

    def __init__(self, *, capacity_bytes: int, on_loaded: Callable[[], None]) -> None:
        """Creates an empty memory; ``on_loaded`` is called, on any thread, after each load."""
        self._capacity_bytes = capacity_bytes
        self._on_loaded = on_loaded
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="latentwire-adapters")
        self._is_full = False
        self.num_loads = 0
        """How many sets have been loaded."""

    @property
    def num_bytes(self) -> int:
        """The size of all sets."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def ready(
        self, waiting: Iterable[Generation], model_of: Callable[[str], DiffusionModel]
    ) -> list[str]:
        """Returns which generations can start, and starts loading for the others.

        Args:
            waiting: The waiting generations, in the order in which they get room.
            model_of: Returns the model of an id.
        """
        self._is_full = False
        return [
            generation.id
            for generation in waiting
            if not generation.request.adapters
            or self._is_ready(generation, model_of(generation.request.model))
        ]

    def model_for(self, generation: Generation, model: DiffusionModel) -> DiffusionModel:
        """Returns the model of a ready generation, with its adapters in it.

        Raises:
            LoraUnusable: An adapter cannot be loaded.
        """
        adapters = generation.request.adapters
        if not adapters:
            return model
        key = _key(generation)
        try:
            return self._entries[key].loading.result().scaled(dict(adapters))
        except LoraError as error:
            # The next request tries again: the file may have been repaired.
            self._entries.pop(key, None)
            raise LoraUnusable(error.id, error.reason) from None
        except Exception:
            self._entries.pop(key, None)
            raise

    def keep_only_users(self, ids: set[str]) -> None:
        """Releases the sets of all generations but these, which still wait or run."""
        for entry in self._entries.values():
            entry.users &= ids

    def forget(self, model_id: str) -> None:
        """Drops the unused sets of a model, which hold references to its weights."""
        for key in [key for key in self._entries if key[0] == model_id]:
            self._entries.pop(key).loading.cancel()

    def close(self) -> None:
        """Cancels all loading that has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_ready(self, generation: Generation, model: DiffusionModel) -> bool:
        key = _key(generation)
        entry = self._entries.get(key)
        is_user = entry is not None and generation.id in entry.users
        if self._is_full and not is_user:
            return False
        if entry is None:
            entry = self._start_loading(key, model)
            if entry is None:
                self._is_full = True
                return False
        self._entries.move_to_end(key)
        entry.users.add(generation.id)
        return entry.loading.done()

    def _start_loading(self, key: _Key, model: DiffusionModel) -> _Entry | None:
        """Starts to load a set; returns None while there is no room for it."""
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
        """Returns whether ``num_bytes`` fit, after dropping unused sets if that makes them fit."""
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
