"""``/v1/models``: the server's models, and the names of OpenAI's that stand for them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire import LatentwireError
from latentwire_bridge.callers import client_of
from latentwire_bridge.errors import api_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import AsyncClient

_OWNER: Final = "latentwire"


class ModelRoutes:
    """Answers what models there are."""

    def __init__(self, client: AsyncClient, *, aliases: Mapping[str, str]) -> None:
        """Takes the server's client.

        Args:
            client: The server.
            aliases: What each further name stands for; the empty string is the default model.
        """
        self._client = client
        self._aliases = aliases
        # The contract dates no models; this is since when they are offered here.
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        """Returns the server's name for a model; empty for its default one."""
        return self._aliases.get(name, name) if name else ""

    async def list(self, request: web.Request) -> web.Response:
        """Lists the real models, the default one first, then the aliases."""
        try:
            models = await client_of(request.headers, client=self._client).models()
        except LatentwireError as error:
            raise api_error(error) from error
        ids = [name for model in models for name in (_id(model.name), *model.aliases)]
        ids += [alias for alias in self._aliases if alias not in ids]
        return _json({"object": "list", "data": [self._model(id_) for id_ in ids]})

    async def get(self, request: web.Request) -> web.Response:
        """Returns one model by any of its names."""
        name = request.match_info["id"]
        try:
            model = await client_of(request.headers, client=self._client).model(self.resolve(name))
        except LatentwireError as error:
            raise api_error(error) from error
        is_alias = name in self._aliases or name in model.aliases
        return _json(self._model(name if is_alias else _id(model.name)))

    def _model(self, id_: str) -> dict[str, object]:
        return {"id": id_, "object": "model", "created": self._created, "owned_by": _OWNER}


def _id(name: str) -> str:
    return name.removeprefix("models/")


def _json(body: object) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")
