"""The request inside an image file, as parsed by the contract."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert.image_metadata import describe_image
from latentwire_server.engine.request import ImageFormat, OutputOptions
from tests.support.engine.requests import request


def described(wanted, index: int = 0) -> dict:
    return json.loads(describe_image(wanted, index, "sha256:ab", version="1.2.3"))


def test_it_parses_as_a_request_for_that_one_image() -> None:
    wanted = request(
        "ein Kreis, 円 \N{ROCKET}",
        negative_prompt="blau",
        num_images=3,
        seed=2**62,
        guidance_scale=7.25,
        scheduler="dpmpp-2m",
        clip_skip=1,
        output=OutputOptions(format=ImageFormat.WEBP, quality=71),
        labels={"team": "secret"},
        user="secret",
    )
    text = json.dumps(described(wanted, 2)["request"])
    parsed = json_format.Parse(text, pb.GenerateImageRequest())
    expected = pb.GenerateImageRequest(
        model="fake",
        prompt="ein Kreis, 円 \N{ROCKET}",
        negative_prompt="blau",
        width=64,
        height=64,
        num_images=1,
        seed=2**62 + 2,
        num_inference_steps=4,
        guidance_scale=7.25,
        scheduler=pb.Scheduler(id="dpmpp-2m", sigmas="default"),
        clip_skip=1,
        output=pb.Output(format=pb.IMAGE_FORMAT_WEBP, quality=71),
    )
    assert parsed == expected


def test_float32_numbers_are_written_as_given_and_stay_the_same_on_the_wire() -> None:
    written = (0.1, 0.3, 0.7, 6.3, 7.1, 1 / 3)
    for number in written:
        on_the_wire = pb.GenerateImageRequest(guidance_scale=number).guidance_scale
        in_file = described(request(guidance_scale=on_the_wire))["request"]["guidance_scale"]
        assert in_file == pytest.approx(number, rel=1e-7)
        assert len(str(in_file)) <= 10
        assert pb.GenerateImageRequest(guidance_scale=in_file).guidance_scale == on_the_wire


def test_it_names_the_version_and_the_model_revision() -> None:
    description = described(request())
    assert description["latentwire"] == "1.2.3"
    assert description["model_revision"] == "sha256:ab"


def test_a_png_has_no_quality() -> None:
    assert described(request())["request"]["output"] == {"format": "IMAGE_FORMAT_PNG"}


def test_metadata_can_be_omitted() -> None:
    wanted = request(output=OutputOptions(metadata_omitted=True))
    assert describe_image(wanted, 0, "x", version="1") is None
