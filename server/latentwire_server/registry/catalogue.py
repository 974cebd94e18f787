"""Which models the server offers, under which names, with which limits, and in what state.

Event loop only. Does not know how a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import ModelNotFound
from latentwire_server.registry.loadable_model import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec
    from latentwire_server.registry.loadable_model import LoadableModel


class ModelState(StrEnum):
    """Whether a model can be used."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """A model as it is now."""

    id: str
    is_default: bool
    state: ModelState
    failure: str
    """Why it could not be loaded; empty unless ``state`` is ``FAILED``."""
    aliases: tuple[str, ...]
    memory_bytes: int
    """0 unless it is loaded."""
    info: ModelInfo | None
    """With the operator's limits and aliases; None if that is unknown until the model is loaded."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    state: ModelState = ModelState.UNLOADED
    failure: str = ""
    spec: ModelSpec | None = None
    """Read from the configuration, without the weights; None where that is not possible."""
    info: ModelInfo | None = None
    model: DiffusionModel | None = None
    memory_bytes: int = 0
    """Of the loaded model."""


class Catalogue:
    """The models by id; the first one is the default."""

    def __init__(self, models: Sequence[LoadableModel]) -> None:
        self._entries = {model.id: _Entry() for model in models}
        self._limits = {model.id: model.limits for model in models}
        self._aliases = {alias: model.id for model in models for alias in model.aliases}
        self.default_id: Final = models[0].id

    def id_of(self, name: str) -> str:
        """Returns the id of the model with this id, alias or name; empty means the default model.

        Raises:
            ModelNotFound: There is no such model.
        """
        if not name:
            return self.default_id
        bare = name.removeprefix("models/")
        id_ = self._aliases.get(bare, bare)
        if id_ not in self._entries:
            raise ModelNotFound(name=name, known=(*self._entries, *self._aliases))
        return id_

    def state(self, model_id: str) -> ModelState:
        """Returns whether a model can be used."""
        return self._entries[model_id].state

    def spec(self, model_id: str) -> tuple[ModelSpec, ModelInfo] | None:
        """Returns what requests are checked against; None if unknown until the model is loaded."""
        entry = self._entries[model_id]
        # The spec first: a request that holds it does not keep the weights of an unloaded model.
        spec = entry.spec or entry.model
        return None if spec is None or entry.info is None else (spec, entry.info)

    def check(self, spec: ModelSpec, *, model_id: str) -> ModelInfo:
        """Returns a model's properties with the operator's limits and aliases.

        Raises:
            ModelLoadError: The limits forbid the model's own defaults.
        """
        info = replace(
            spec.info,
            limits=replace(spec.info.limits, **self._limits[model_id]),
            aliases=tuple(dict.fromkeys((*spec.info.aliases, *self._aliases_of(model_id)))),
        )
        limits, defaults = info.limits, info.defaults
        conflicts = {
            "max_side": (limits.max_side, max(defaults.width, defaults.height)),
            "max_pixels": (limits.max_pixels, defaults.width * defaults.height),
            "max_inference_steps": (limits.max_inference_steps, defaults.num_inference_steps),
        }
        for name, (limit, default) in conflicts.items():
            if limit < default:
                message = f"{name}={limit}: below the default of {info.id}, {default}"
                raise ModelLoadError(message, reason=message)
        return info

    def set_spec(self, model_id: str, spec: ModelSpec) -> None:
        """Records what is known of a model before it is loaded.

        Raises:
            ModelLoadError: The operator's limits forbid the model's own defaults.
        """
        info = self.check(spec, model_id=model_id)
        entry = self._entries[model_id]
        entry.spec, entry.info = spec, info

    def set_loading(self, model_id: str) -> None:
        """Marks a model as being loaded."""
        entry = self._entries[model_id]
        entry.state, entry.failure = ModelState.LOADING, ""

    def set_ready(self, model_id: str, model: DiffusionModel, *, memory_bytes: int) -> None:
        """Marks a model as ready and records its memory use."""
        entry = self._entries[model_id]
        entry.info = self.check(model, model_id=model_id)
        entry.state, entry.failure = ModelState.READY, ""
        entry.model, entry.memory_bytes = model, memory_bytes
        for alias in entry.info.aliases:
            self._aliases.setdefault(alias, model_id)

    def set_failed(self, model_id: str, reason: str) -> None:
        """Records why a model cannot be loaded."""
        entry = self._entries[model_id]
        entry.state, entry.failure, entry.model = ModelState.FAILED, reason, None

    def set_unloaded(self, model_id: str) -> None:
        """Releases a model; what is known of it stays."""
        entry = self._entries[model_id]
        entry.state, entry.failure, entry.model = ModelState.UNLOADED, "", None

    def snapshot(self, name: str) -> ModelSnapshot:
        """Returns a model as it is now.

        Raises:
            ModelNotFound: There is no such model.
        """
        id_ = self.id_of(name)
        entry = self._entries[id_]
        return ModelSnapshot(
            id=id_,
            is_default=id_ == self.default_id,
            state=entry.state,
            failure=entry.failure,
            aliases=self._aliases_of(id_) if entry.info is None else entry.info.aliases,
            memory_bytes=0 if entry.model is None else entry.memory_bytes,
            info=entry.info,
        )

    def snapshots(self) -> tuple[ModelSnapshot, ...]:
        """Returns every model as it is now, the default one first."""
        return tuple(map(self.snapshot, self._entries))

    @property
    def default_model(self) -> DiffusionModel | None:
        """The default model; None while it is not loaded."""
        return self._entries[self.default_id].model

    def _aliases_of(self, model_id: str) -> tuple[str, ...]:
        return tuple(alias for alias, id_ in self._aliases.items() if id_ == model_id)
