"""Which models the server offers, under which names, with which limits, and in what state.

Event loop only. Knows nothing of how a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert import resources
from latentwire_server.engine.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec
    from latentwire_server.registry.loadable_model import LoadableModel


class ModelState(StrEnum):
    """Where a model is."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


_STATES: Final = {
    ModelState.UNLOADED: pb.MODEL_STATE_UNLOADED,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}


class LimitConflictError(ValueError):
    """The operator's limits forbid what the model draws by default; the text says which."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    state: ModelState = ModelState.UNLOADED
    spec: ModelSpec | None = None
    """Read from its configuration, without its weights; None where that cannot be."""
    model: DiffusionModel | None = None
    memory_bytes: int = 0
    """Of the loaded model."""
    info: ModelInfo | None = None
    """With the operator's limits and aliases; None until anything is known."""
    failure: str = ""


class Catalogue:
    """The models by id; the first one is the default."""

    def __init__(self, models: Sequence[LoadableModel]) -> None:
        """Takes what is served, the default model first."""
        self._entries = {model.id: _Entry() for model in models}
        self._limits = {model.id: model.limits for model in models}
        self._aliases = {alias: model.id for model in models for alias in model.aliases}
        self.default_id: Final = models[0].id

    @property
    def ids(self) -> tuple[str, ...]:
        """Every model's id, the default one first."""
        return tuple(self._entries)

    def id_of(self, name: str) -> str:
        """Returns the id of a name, id or alias; of the default model for an empty one.

        Raises:
            ModelNotFound: there is no such model.
        """
        if not name:
            return self.default_id
        bare = name.removeprefix("models/")
        id_ = self._aliases.get(bare, bare)
        if id_ not in self._entries:
            raise ModelNotFound(name=name, known=(*self._entries, *self._aliases))
        return id_

    def state(self, model_id: str) -> ModelState:
        """Returns where a model is."""
        return self._entries[model_id].state

    def failure(self, model_id: str) -> str:
        """Returns why it could not be loaded; empty unless it is failed."""
        return self._entries[model_id].failure

    def known(self, model_id: str) -> tuple[ModelSpec, ModelInfo] | None:
        """Returns what a request can be checked against; None: only once the model is loaded."""
        entry = self._entries[model_id]
        spec = entry.model or entry.spec
        return None if spec is None or entry.info is None else (spec, entry.info)

    def check(self, spec: ModelSpec, *, model_id: str) -> None:
        """Returns if the operator's limits let the model draw.

        Raises:
            LimitConflictError: they forbid its own defaults.
        """
        _check(self._info_of(spec, model_id=model_id))

    def set_spec(self, model_id: str, spec: ModelSpec) -> None:
        """Takes in what is known of a model before it is loaded."""
        entry = self._entries[model_id]
        entry.spec = spec
        entry.info = self._info_of(spec, model_id=model_id)

    def loading(self, model_id: str) -> None:
        """Takes in that a model is being loaded."""
        entry = self._entries[model_id]
        entry.state, entry.failure = ModelState.LOADING, ""

    def ready(self, model_id: str, model: DiffusionModel, *, memory_bytes: int) -> None:
        """Takes in a loaded model and what it takes."""
        entry = self._entries[model_id]
        entry.state, entry.failure = ModelState.READY, ""
        entry.model, entry.memory_bytes = model, memory_bytes
        entry.info = self._info_of(model, model_id=model_id)
        for alias in entry.info.aliases:
            self._aliases.setdefault(alias, model_id)

    def failed(self, model_id: str, reason: str) -> None:
        """Takes in why a model cannot be loaded."""
        entry = self._entries[model_id]
        entry.state, entry.failure, entry.model = ModelState.FAILED, reason, None

    def unloaded(self, model_id: str) -> None:
        """Lets go of a model; what is known of it stays."""
        entry = self._entries[model_id]
        entry.state, entry.failure, entry.model = ModelState.UNLOADED, "", None

    def model(self, name: str) -> pb.Model:
        """Returns a model as a resource.

        Raises:
            ModelNotFound: there is none.
        """
        id_ = self.id_of(name)
        entry, is_default = self._entries[id_], id_ == self.default_id
        if entry.info is not None:
            return resources.model_to_proto(
                entry.info,
                state=_STATES[entry.state],
                is_default=is_default,
                failure_message=entry.failure,
                memory_bytes=0 if entry.model is None else entry.memory_bytes,
            )
        return pb.Model(
            name=resources.model_name(id_),
            display_name=id_,
            is_default=is_default,
            state=_STATES[entry.state],
            failure_message=entry.failure,
            aliases=[alias for alias, of in self._aliases.items() if of == id_],
        )

    def models(self) -> tuple[pb.Model, ...]:
        """Returns every model as a resource, the default one first."""
        return tuple(self.model(id_) for id_ in self._entries)

    @property
    def default_model(self) -> DiffusionModel | None:
        """The default model; None while it is not loaded."""
        return self._entries[self.default_id].model

    def _info_of(self, spec: ModelSpec, *, model_id: str) -> ModelInfo:
        own = (alias for alias, of in self._aliases.items() if of == model_id)
        return replace(
            spec.info,
            limits=replace(spec.info.limits, **self._limits[model_id]),
            aliases=tuple(dict.fromkeys((*spec.info.aliases, *own))),
        )


def _check(info: ModelInfo) -> None:
    limits, defaults = info.limits, info.defaults
    conflicts = {
        "max_side": (limits.max_side, max(defaults.width, defaults.height)),
        "max_pixels": (limits.max_pixels, defaults.width * defaults.height),
        "max_inference_steps": (limits.max_inference_steps, defaults.num_inference_steps),
    }
    for name, (limit, default) in conflicts.items():
        if limit < default:
            message = f"{name}={limit}: below what {info.id} draws by default, {default}"
            raise LimitConflictError(message)
