"""``/v1/models``: the server's models, and the names of OpenAI's that stand for them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from aiohttp import web

from latentwire import LatentwireError
from latentwire_bridge.edge.callers import client_of
from latentwire_bridge.openai.failed_calls import api_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import AsyncClient, Model
    from latentwire_bridge.openai.answers import DefaultsAnswer, ModelAnswer, ModelsAnswer


class ModelRoutes:
    """Lists the models."""

    def __init__(self, client: AsyncClient, *, aliases: Mapping[str, str]) -> None:
        """Makes the routes.

        Args:
            client: The server.
            aliases: Further names of models; an empty model is the default one.
        """
        self._client = client
        self._aliases = aliases
        # The contract has no date for models.
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        """Returns the server's name for a model; empty for the default model."""
        return self._aliases.get(name, name) if name else ""

    async def list(self, request: web.Request) -> web.Response:
        """Lists the models, the default one first, then the aliases."""
        try:
            models = await client_of(request.headers, client=self._client).models()
        except LatentwireError as error:
            raise api_error(error) from error
        named = {name: one for one in models for name in (_id(one.name), *one.aliases)}
        default = next((one for one in models if one.is_default), None)
        for alias, target in self._aliases.items():
            model = named.get(_id(target)) if target else default
            if model is not None:
                named.setdefault(alias, model)
        data = [self._model(name, model) for name, model in named.items()]
        answer: ModelsAnswer = {"object": "list", "data": data}
        return _json(answer)

    async def get(self, request: web.Request) -> web.Response:
        """Returns one model by any of its names."""
        name = request.match_info["id"]
        try:
            model = await client_of(request.headers, client=self._client).model(self.resolve(name))
        except LatentwireError as error:
            raise api_error(error) from error
        is_alias = name in self._aliases or name in model.aliases
        return _json(self._model(name if is_alias else _id(model.name), model))

    def _model(self, id_: str, model: Model) -> ModelAnswer:
        """Returns OpenAI's four fields, and the model's state and abilities."""
        answer: ModelAnswer = {
            "id": id_,
            "object": "model",
            "created": self._created,
            "owned_by": "latentwire",
            "state": model.state,
        }
        if model.failure_message:
            answer["failure_message"] = model.failure_message
        if model.family:
            answer["capabilities"] = ["text-to-image", *model.capabilities]
            answer["schedulers"] = [
                {"id": one.id, "sigmas": [*one.sigmas]} for one in model.schedulers
            ]
            answer["limits"] = model.limits
            answer["defaults"] = _defaults(model)
            answer["loras"] = [*model.loras]
        return answer


def _defaults(model: Model) -> DefaultsAnswer:
    defaults = model.defaults
    scheduler_id, sigmas = defaults.scheduler
    answer: DefaultsAnswer = {
        "width": defaults.width,
        "height": defaults.height,
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "scheduler": {"id": scheduler_id, "sigmas": sigmas},
    }
    if defaults.high_noise_frac is not None:
        answer["high_noise_frac"] = defaults.high_noise_frac
    if defaults.high_resolution_fix is not None:
        answer["high_resolution_fix"] = defaults.high_resolution_fix
    return answer


def _id(name: str) -> str:
    return name.removeprefix("models/")


def _json(body: object) -> web.Response:
    return web.Response(
        body=json.dumps(body, default=asdict).encode(), content_type="application/json"
    )
