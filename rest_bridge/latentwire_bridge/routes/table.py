"""The routes: what the application serves and ``/openapi.json`` describes. Pure.

A path is as ``canonical_path`` makes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire_bridge.openai.answers import (
    Answer,
    ImagesAnswer,
    ModelAnswer,
    ModelsAnswer,
    StatusAnswer,
)
from latentwire_bridge.openai.failed_calls import SERVER_STATUSES
from latentwire_bridge.openai.schema import EditBody, GenerationBody, ImageBody, VariationBody
from latentwire_bridge.routes.files import FILES_PATH

if TYPE_CHECKING:
    from latentwire_bridge.routes.files import FileRoutes
    from latentwire_bridge.routes.health import HealthRoutes
    from latentwire_bridge.routes.images import ImageRoutes
    from latentwire_bridge.routes.models import ModelRoutes

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ANYWHERE: Final = frozenset({400, 403, 500})
_SERVER: Final = _ANYWHERE | SERVER_STATUSES
_UPLOAD: Final = _SERVER | {408, 413, 415}
RATE_LIMIT_HEADERS: Final = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What answers requests."""

    images: ImageRoutes
    models: ModelRoutes
    files: FileRoutes
    health: HealthRoutes
    description: Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A method of a path."""

    method: str
    path: str
    handler: Callable[[Handlers], Handler]
    operation_id: str
    summary: str
    body: type[ImageBody] | None = None
    answer: type[Answer] | None = None
    """The JSON of a success; None if that is something else."""
    errors: frozenset[int] = _ANYWHERE
    """The statuses of failures."""
    headers: tuple[str, ...] = ()
    """The headers of a success, besides those of every response."""

    @property
    def takes_forms(self) -> bool:
        """Whether the body may be a form with files."""
        return self.body is not None and issubclass(self.body, EditBody)


ROUTES: Final = (
    Route(
        method="POST",
        path="/images/generations",
        handler=lambda handlers: handlers.images.generate,
        operation_id="createImage",
        summary="Generates images from a prompt.",
        body=GenerationBody,
        answer=ImagesAnswer,
        errors=_UPLOAD,
        headers=RATE_LIMIT_HEADERS,
    ),
    Route(
        method="POST",
        path="/images/edits",
        handler=lambda handlers: handlers.images.edit,
        operation_id="createImageEdit",
        summary="Generates images from an image, or in a masked part of it.",
        body=EditBody,
        answer=ImagesAnswer,
        errors=_UPLOAD,
        headers=RATE_LIMIT_HEADERS,
    ),
    Route(
        method="POST",
        path="/images/variations",
        handler=lambda handlers: handlers.images.vary,
        operation_id="createImageVariation",
        summary="Generates images similar to an image.",
        body=VariationBody,
        answer=ImagesAnswer,
        errors=_UPLOAD,
        headers=RATE_LIMIT_HEADERS,
    ),
    Route(
        method="GET",
        path=FILES_PATH + "{name}",
        handler=lambda handlers: handlers.files.get,
        operation_id="retrieveFile",
        summary="Returns an image by its `url`, without a key: knowing the name is enough.",
        errors=_ANYWHERE | {HTTPStatus.NOT_FOUND},
        headers=("Content-Disposition", "Content-Security-Policy"),
    ),
    Route(
        method="GET",
        path="/models",
        handler=lambda handlers: handlers.models.list,
        operation_id="listModels",
        summary="Lists the models by all their names.",
        answer=ModelsAnswer,
        errors=_SERVER,
    ),
    Route(
        method="GET",
        path="/models/{id}",
        handler=lambda handlers: handlers.models.get,
        operation_id="retrieveModel",
        summary="Returns a model by any of its names, which may contain slashes.",
        answer=ModelAnswer,
        errors=_SERVER,
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=lambda handlers: handlers.health.live,
        operation_id="isAlive",
        summary="Answers whenever the bridge runs.",
        answer=StatusAnswer,
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=lambda handlers: handlers.health.ready,
        operation_id="isReady",
        summary="Reports whether the server can generate images.",
        answer=StatusAnswer,
        errors=_ANYWHERE | {HTTPStatus.SERVICE_UNAVAILABLE},
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=lambda handlers: handlers.description,
        operation_id="describe",
        summary="Returns this description.",
        headers=("ETag",),
    ),
)
