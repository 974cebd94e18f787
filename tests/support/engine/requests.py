"""Requests for the fake model."""

from __future__ import annotations

import itertools
from typing import Any

from latentwire_server.engine.request import GenerationRequest
from latentwire_server.models.info import SchedulerChoice

_NUMBERS = itertools.count(1)


def request(prompt: str = "a red circle", **changes: Any) -> GenerationRequest:
    """Returns a request with a unique id; ``scheduler`` may be an id."""
    fields: dict[str, Any] = {
        "generation_id": f"g{next(_NUMBERS)}",
        "owner": "",
        "model": "fake",
        "prompt": prompt,
        "width": 64,
        "height": 64,
        "seed": 7,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "scheduler": "euler",
    }
    fields.update(changes)
    if isinstance(fields["scheduler"], str):
        fields["scheduler"] = SchedulerChoice(id=fields["scheduler"])
    return GenerationRequest(**fields)
