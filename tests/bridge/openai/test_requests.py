"""Requests to the server: which defaults and limits are left for the server to decide."""

from __future__ import annotations

import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_bridge.openai.requests import preview_options
from tests.support.bridge.bridging import bridging
from tests.support.bridge.event_streams import events_in
from tests.support.bridge.images import data_url, file_of, half_white, plain_image
from tests.support.server.serving import serving


@pytest.mark.parametrize(
    ("steps", "strength", "interval"),
    [(8, None, 2), (10, 0.8, 2), (10, 0.7, 2), (4, 1.0, 1), (3, 0.5, 1), (100, 0.29, 7)],
)
def test_previews_are_spread_over_the_steps_taken(steps, strength, interval):
    accepted = pb.GenerateImageRequest(num_inference_steps=steps)
    if strength is not None:
        accepted.image_to_image.strength = strength
    assert preview_options(3, accepted)["preview_interval_steps"] == interval


@pytest.mark.parametrize(("mask", "step"), [(None, 4), (half_white(), 5)])
async def test_the_servers_default_strength_decides_the_steps_at_which_an_edit_is_previewed(
    bridge, server, mask, step
):
    server.model.call_s = 0.1
    body = {"prompt": "x", "image": data_url(file_of(plain_image())), "num_inference_steps": 10}
    body |= {} if mask is None else {"mask": data_url(file_of(mask))}
    body |= {"stream": True, "partial_images": 1}
    answer = await bridge.send("POST", "/v1/images/edits", json=body)
    partial, completed = events_in(answer.data)
    # The contract's defaults: 0.8, and 1 with a mask.
    assert partial["step"] == step
    assert completed["usage"]["output_tokens"] == {4: 8, 5: 10}[step]


async def test_a_refused_validation_is_answered_like_a_refused_generation(bridge, server):
    answer = await bridge.generate(stream=True, partial_images=1, num_inference_steps=100_000)
    assert (answer.status, answer.error["param"]) == (400, "num_inference_steps")
    assert server.model.calls == []


async def test_the_server_limits_the_number_of_images():
    async with serving(max_images=12) as server, bridging(server.address) as bridge:
        assert len((await bridge.generate(n=12)).json["data"]) == 12
        refused = await bridge.generate(n=13)
    assert (refused.status, refused.error["param"]) == (400, "n")
