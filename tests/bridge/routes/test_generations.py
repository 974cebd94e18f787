"""Generations over HTTP, by the real server around a FakeModel."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from latentwire_server.models.info import LoraInfo
from tests.support.bridge.bridging import bridging
from tests.support.bridge.event_streams import events_in
from tests.support.fakes import FakeModel, expected_pixels
from tests.support.server.large_model import LargeModel
from tests.support.server.serving import serving


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decoded(datum: dict) -> bytes:
    return base64.b64decode(datum["b64_json"], validate=True)


async def test_by_default_an_answer_has_both_the_image_and_its_url(bridge):
    answer = await bridge.generate(seed=5)

    assert answer.status == 200
    (datum,) = answer.json["data"]
    assert set(datum) == {"b64_json", "url", "seed"}
    expected = expected_pixels("a red circle", seed=5, guidance_scale=2.0)
    difference = np.abs(np.asarray(opened(decoded(datum)), dtype=int) - expected.astype(int))
    assert difference.max() <= 2
    assert datum["url"].startswith(f"{bridge.url}/files/")
    downloaded = await bridge.get(datum["url"].removeprefix(bridge.url))
    assert downloaded.data == decoded(datum)
    assert downloaded.headers["Content-Type"] == "image/png"
    assert downloaded.headers["Cache-Control"].startswith("private")
    assert downloaded.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("response_format", "keys"), [("b64_json", {"b64_json", "seed"}), ("url", {"url", "seed"})]
)
async def test_an_explicit_response_format_is_the_only_one(bridge, response_format, keys):
    answer = await bridge.generate(response_format=response_format)

    assert set(answer.json["data"][0]) == keys


async def test_the_answer_describes_the_generated_images(bridge):
    answer = await bridge.generate(n=3, seed=40, size="128x64", output_format="webp")

    assert answer.json["size"] == "128x64"
    assert answer.json["output_format"] == "webp"
    assert answer.json["background"] == "opaque"
    assert isinstance(answer.json["created"], int)
    assert [datum["seed"] for datum in answer.json["data"]] == [40, 41, 42]
    for datum in answer.json["data"]:
        assert opened(decoded(datum)).size == (128, 64)
        assert opened(decoded(datum)).format == "WEBP"
        assert datum["url"].endswith(".webp")


async def test_null_and_empty_fields_count_as_absent(bridge, server):
    names = (
        "model", "n", "size", "response_format", "quality", "style", "user", "background",
        "output_format", "output_compression", "moderation", "stream", "partial_images",
        "safety_identifier", "negative_prompt", "num_inference_steps", "guidance_scale", "seed",
        "scheduler", "clip_skip", "width", "height", "image", "mask", "strength", "loras",
        "high_noise_frac", "high_resolution_fix",
    )  # fmt: skip
    for nothing in (None, ""):
        answer = await bridge.generate(**dict.fromkeys(names, nothing))

        assert answer.status == 200, answer.data
        assert set(answer.json["data"][0]) == {"b64_json", "url", "seed"}
    assert len(server.model.calls) == 8


@pytest.mark.parametrize("size", ["", "auto", None])
async def test_the_default_size_is_the_models(bridge, size):
    answer = await bridge.generate(size=size)

    assert answer.json["size"] == "64x64"


@pytest.mark.parametrize("size", ["128x64", "128X64", "128*64", " 128 x 64 "])
async def test_an_image_has_the_requested_size(bridge, size):
    answer = await bridge.generate(size=size)

    assert opened(decoded(answer.json["data"][0])).size == (128, 64)


async def test_width_and_height_can_be_set_separately(bridge):
    answer = await bridge.generate(width=128)

    assert answer.json["size"] == "128x64"


async def test_extensions_reach_the_server_under_each_of_their_names(bridge, server):
    for names in (
        {"num_inference_steps": 2, "guidance_scale": 3.5, "scheduler": "heun"},
        {"steps": "2", "cfg_scale": "3.5", "sampler": "heun"},
        {"sample_steps": 2.0, "guidance_scale": "3.5", "scheduler": {"id": "heun"}},
        {"step": 2, "cfg_scale": 3.5, "sampler_name": "heun"},
    ):
        answer = await bridge.generate(seed=0, negative_prompt="a square", **names)

        text = opened(decoded(answer.json["data"][0])).text["latentwire"]
        request = json.loads(text)["request"]
        assert request["num_inference_steps"] == 2
        assert request["guidance_scale"] == 3.5
        assert request["scheduler"]["id"] == "heun"
        assert request["negative_prompt"] == "a square"
        assert answer.json["data"][0]["seed"] == 0


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"lora": "style"}, [("style", 1.0)]),
        ({"lora": {"name": "style", "scale": "0.5"}}, [("style", 0.5)]),
        ({"loras": ["cat", {"id": "style", "scale": -1}]}, [("cat", 1.0), ("style", -1.0)]),
        ({"loras": '[{"id": "style", "scale": 2}]'}, [("style", 2.0)]),
        ({"loras": []}, []),
    ],
)
async def test_loras_reach_the_server(scripted_bridge, servicer, sent, expected):
    await scripted_bridge.generate(**sent)

    assert [(one.id, one.scale) for one in servicer.requests[-1].loras] == expected


async def test_an_unknown_lora_is_reported_under_the_field_that_was_sent(bridge):
    answer = await bridge.generate(lora="nobody")

    assert answer.status == 400
    assert answer.error["param"] == "lora"
    assert "nobody" in answer.error["message"]


async def test_the_sigmas_of_a_scheduler_can_be_chosen(bridge):
    answer = await bridge.generate(scheduler={"id": "euler", "sigmas": "karras"})

    text = opened(decoded(answer.json["data"][0])).text["latentwire"]
    assert json.loads(text)["request"]["scheduler"] == {"id": "euler", "sigmas": "karras"}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"size": "128x128"}, {"strength": 0.5, "width": 64, "height": 64}),
        ({"size": "128x128", "high_resolution_fix": False}, {"disabled": True}),
        ({"size": "80x64", "high_resolution_fix": True}, {"strength": 0.5, "width": 72}),
        ({"size": "80x64", "high_resolution_fix": 0.3}, {"strength": 0.3, "width": 72}),
        ({"size": "80x64", "high_resolution_fix": "0.3"}, {"strength": 0.3, "width": 72}),
        ({"size": "80x64", "high_resolution_fix": None}, None),
    ],
)
async def test_the_high_resolution_fix_can_be_requested_and_declined(sent, expected):
    async with (
        serving(FakeModel(high_resolution_fix=0.5)) as server,
        bridging(server.address) as bridge,
    ):
        answer = await bridge.generate(**sent)

        model = (await bridge.get("/v1/models/fake")).json

    assert model["defaults"]["high_resolution_fix"] == 0.5
    assert answer.status == 200, answer.data
    text = opened(decoded(answer.json["data"][0])).text["latentwire"]
    effective = json.loads(text)["request"].get("high_resolution_fix")
    assert (effective is None) == (expected is None)
    assert {**(effective or {}), **(expected or {})} == (effective or {})


async def test_a_model_lists_its_loras():
    loras = tuple(LoraInfo(id=id_, num_bytes=10) for id_ in ("style", "person"))
    async with (
        serving(FakeModel(loras=loras)) as server,
        bridging(server.address) as bridge,
    ):
        model = (await bridge.get("/v1/models/dall-e-3")).json
        answer = await bridge.generate(loras=model["loras"])

    assert model["loras"] == ["style", "person"]
    assert answer.status == 200, answer.data


@pytest.mark.parametrize("sent", ["on", "true", 0, 1.5, [0.5]])
async def test_an_invalid_high_resolution_fix_is_refused(bridge, sent):
    answer = await bridge.generate(size="128x128", high_resolution_fix=sent)

    assert answer.status == 400
    assert answer.error["param"] == "high_resolution_fix"
    assert answer.error["message"].count("high_resolution_fix") == 1


async def test_a_model_without_the_high_resolution_fix_refuses_it_by_name(bridge):
    answer = await bridge.generate(size="128x128", high_resolution_fix=0.5)

    assert (answer.status, answer.error["param"]) == (400, "high_resolution_fix")
    assert answer.error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("seed", [None, -1, "-1"])
async def test_without_a_seed_or_with_minus_one_the_seed_is_random(bridge, seed):
    answers = [await bridge.generate(seed=seed) for _ in range(2)]

    seeds = [answer.json["data"][0]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("output_format", "expected"),
    [("png", "PNG"), ("jpeg", "JPEG"), ("jpg", "JPEG"), ("webp", "WEBP")],
)
async def test_every_output_format_is_supported(bridge, output_format, expected):
    answer = await bridge.generate(output_format=output_format, output_compression=100)

    assert opened(decoded(answer.json["data"][0])).format == expected


async def test_output_compression_is_the_quality(bridge):
    sizes = []
    for compression in (0, 50, 100):
        answer = await bridge.generate(
            seed=1, size="256x256", output_format="jpeg", output_compression=compression
        )
        assert answer.status == 200, answer.data
        sizes.append(len(decoded(answer.json["data"][0])))

    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/generations",
        "/images/generations",
        "/v1//images/generations",
        "//v1///images//generations/",
        "/v1/image/generations",
        "/image/generations",
    ],
)
async def test_variants_of_the_path_are_accepted(bridge, path):
    assert (await bridge.generate(path)).status == 200


@pytest.mark.parametrize(
    "model",
    ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2", "fake", "fake-alias", "models/fake"],
)
async def test_openais_model_names_mean_the_default_model(bridge, model):
    assert (await bridge.generate(model=model)).status == 200


async def test_an_unknown_model_is_not_found(bridge):
    answer = await bridge.generate(model="midjourney")

    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert answer.error["param"] == "model"


async def test_the_operator_chooses_the_aliases(server):
    async with bridging(server.address, model_aliases="mine, theirs=fake, broken=gone") as bridge:
        assert (await bridge.generate(model="mine")).status == 200
        assert (await bridge.generate(model="theirs")).status == 200
        assert (await bridge.generate(model="broken")).error["code"] == "model_not_found"
        assert (await bridge.generate(model="dall-e-2")).error["code"] == "model_not_found"


async def test_all_violations_are_reported_at_once_by_the_names_that_were_sent(bridge, server):
    answer = await bridge.generate(size="100x12", steps=100_000, n=2)

    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == "size"
    assert "width 100 is no multiple of 8" in answer.error["message"]
    assert "height is 12" in answer.error["message"]
    assert "'steps'" in answer.error["message"]
    assert server.model.calls == []


async def test_a_violation_of_the_server_names_the_field_that_was_sent(bridge):
    assert (await bridge.generate(width=100)).error["param"] == "width"
    assert (await bridge.generate(size="100x64")).error["param"] == "size"
    assert (await bridge.generate(sampler="dpm-99")).error["param"] == "sampler"


async def test_a_truncated_prompt_generates_with_a_warning(bridge):
    answer = await bridge.generate(prompt=" ".join(f"word{number}" for number in range(100)))

    assert answer.status == 200
    (warning,) = answer.json["warnings"]
    assert warning["param"] == "prompt"
    assert warning["code"] == "prompt_truncated"
    assert "word99" in warning["message"]


async def test_a_user_of_any_length_is_accepted(bridge):
    for user in ("me", "u" * 500):
        assert (await bridge.generate(user=user)).status == 200
        assert (await bridge.generate(safety_identifier=user)).status == 200


async def test_the_public_url_is_used_in_image_urls(server):
    async with bridging(server.address, public_url="https://images.example/ai/") as bridge:
        answer = await bridge.generate(response_format="url")

        url = answer.json["data"][0]["url"]
        assert url.startswith("https://images.example/ai/files/")
        path = url.removeprefix("https://images.example/ai")
        assert (await bridge.get(path)).status == 200


async def test_a_truncated_prompt_is_returned_as_the_revised_prompt(bridge):
    words = [f"Word{number}" for number in range(80)]
    plain = await bridge.generate(prompt="short")
    assert "revised_prompt" not in plain.json["data"][0]
    assert "warnings" not in plain.json

    answer = await bridge.generate(prompt=" ".join(words), n=2)
    assert [one["revised_prompt"] for one in answer.json["data"]] == [" ".join(words[:75])] * 2
    assert answer.json["warnings"][0]["code"] == "prompt_truncated"
    streamed = await bridge.generate(prompt=" ".join(words), stream=True)
    (event,) = events_in(streamed.data)
    assert event["revised_prompt"] == " ".join(words[:75])


async def test_an_image_generated_larger_is_delivered_in_the_requested_size():
    async with serving(LargeModel()) as server, bridging(server.address) as bridge:
        answer = await bridge.generate(size="64x64")
    assert answer.json["size"] == "64x64"
    (warning,) = answer.json["warnings"]
    assert (warning["param"], warning["code"]) == ("size", "drawn_larger")
    assert opened(decoded(answer.json["data"][0])).size == (64, 64)
