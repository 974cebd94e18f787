"""Which models the server offers, under which names, with which limits, and in what state.

Event loop only. Knows nothing of how a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert import resources
from latentwire_server.engine.errors import ModelNotFound, ModelNotReady

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.model_choice import ModelToLoad
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.model import DiffusionModel

_LOADING_RETRY_S: Final = 2.0


class LimitConflictError(ValueError):
    """The operator's limits forbid what the model draws by default; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    model: DiffusionModel
    info: ModelInfo


class Catalogue:
    """The models by id; the first one is the default."""

    def __init__(self, models: Sequence[ModelToLoad]) -> None:
        """Takes what will be loaded, the default model first."""
        self._ready: dict[str, _Ready | None] = {model.id: None for model in models}
        self._default = models[0].id
        self._limits = {model.id: model.limits for model in models}
        self._aliases = {alias: model.id for model in models for alias in model.aliases}

    def check(self, model: DiffusionModel, *, model_id: str) -> None:
        """Returns if ``add`` would take the model.

        Raises:
            LimitConflictError: the limits forbid the model's own defaults.
        """
        _check(self._info_of(model, model_id=model_id))

    def add(self, model: DiffusionModel, *, model_id: str) -> None:
        """Makes a loaded model available under ``model_id``.

        Raises:
            LimitConflictError: the limits forbid the model's own defaults.
        """
        info = self._info_of(model, model_id=model_id)
        _check(info)
        for alias in info.aliases:
            self._aliases.setdefault(alias, model_id)
        self._ready[model_id] = _Ready(model=model, info=info)

    def _info_of(self, model: DiffusionModel, *, model_id: str) -> ModelInfo:
        aliases = (*model.info.aliases, *(a for a, id_ in self._aliases.items() if id_ == model_id))
        return replace(
            model.info,
            limits=replace(model.info.limits, **self._limits[model_id]),
            aliases=tuple(dict.fromkeys(aliases)),
        )

    def ready(self, name: str) -> tuple[DiffusionModel, ModelInfo]:
        """Returns the model of a name, id or alias with its information; empty: the default.

        Raises:
            ModelNotFound: there is none.
            ModelNotReady: it is still being loaded.
        """
        id_ = self._id_of(name)
        entry = self._ready[id_]
        if entry is None:
            raise ModelNotReady(name=id_, retry_after_s=_LOADING_RETRY_S)
        return entry.model, entry.info

    def model(self, name: str) -> pb.Model:
        """Returns a model as a resource.

        Raises:
            ModelNotFound: there is none.
        """
        id_ = self._id_of(name)
        is_default = id_ == self._default
        entry = self._ready[id_]
        if entry is None:
            return pb.Model(
                name=resources.model_name(id_),
                display_name=id_,
                is_default=is_default,
                state=pb.MODEL_STATE_LOADING,
                aliases=[alias for alias, of in self._aliases.items() if of == id_],
            )
        return resources.model_to_proto(
            entry.info, state=pb.MODEL_STATE_READY, is_default=is_default
        )

    def models(self) -> tuple[pb.Model, ...]:
        """Returns every model as a resource, the default one first."""
        return tuple(self.model(id_) for id_ in self._ready)

    @property
    def default_model(self) -> DiffusionModel | None:
        """The default model; None until it is loaded."""
        entry = self._ready[self._default]
        return entry.model if entry else None

    def _id_of(self, name: str) -> str:
        if not name:
            return self._default
        bare = name.removeprefix("models/")
        id_ = self._aliases.get(bare, bare)
        if id_ not in self._ready:
            raise ModelNotFound(name=name, known=(*self._ready, *self._aliases))
        return id_


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
