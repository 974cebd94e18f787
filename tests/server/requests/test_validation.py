"""The rules for requests, tested with plain values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert.requests import draft_from_proto, effective_request
from latentwire_server.engine.errors import InvalidRequest, Violation
from latentwire_server.engine.request import GenerationRequest, ImageFormat
from latentwire_server.models.info import (
    LoraChoice,
    LoraInfo,
    ModelInfo,
    SchedulerChoice,
    SchedulerInfo,
)
from latentwire_server.requests import validation
from latentwire_server.requests.completion import Assigned, complete
from latentwire_server.requests.draft import RequestDraft
from latentwire_server.requests.image_size import settle_size
from latentwire_server.requests.refused_words import RefusedWords
from tests.support.fakes import FakeModel

STYLE = LoraChoice(id="style", scale=0.5)
INFO = FakeModel(
    loras=(
        LoraInfo(id="style", num_bytes=1_000),
        LoraInfo(id="person", num_bytes=1_000),
        LoraInfo(id="huge", num_bytes=2**30),
    ),
    unfit_loras={"wide": "unet.x: [4, 9] does not fit"},
).info
GOOD = RequestDraft(prompt="a red circle")


def violations(
    draft: RequestDraft, info: ModelInfo, *, refused_words: RefusedWords | None = None
) -> tuple[Violation, ...]:
    size = settle_size(draft, None, info)
    return validation.violations(draft, size, info, refused_words=refused_words)


def completed(draft: RequestDraft, info: ModelInfo = INFO, **assigned: object) -> GenerationRequest:
    given = {"generation_id": "g", "owner": "", "seed": 1, **assigned}
    return complete(draft, FakeModel(), info, assigned=Assigned(**given))


def found(**fields: object) -> dict[str, str]:
    return {one.field: one.reason for one in violations(replace(GOOD, **fields), INFO)}


def test_a_sampler_can_have_a_limit_of_its_own():
    lcm = SchedulerInfo(id="lcm", max_inference_steps=50)
    info = replace(INFO, schedulers=(*INFO.schedulers, lcm))
    wanted = replace(GOOD, scheduler_id="lcm", num_inference_steps=51, width=65)
    reasons = [one.reason for one in violations(wanted, info)]
    assert reasons == ["NOT_A_MULTIPLE", "UNSUPPORTED_STEPS"]
    assert list(violations(replace(GOOD, scheduler_id="lcm", num_inference_steps=50), info)) == []


def test_high_noise_frac_is_validated_and_has_a_default():
    info = FakeModel(refiner=FakeModel()).info
    for share in (0.0, -0.1, 1.1, float("nan")):
        (violation,) = violations(replace(GOOD, high_noise_frac=share), info)
        assert (violation.field, violation.reason) == ("high_noise_frac", "OUT_OF_RANGE")
    asked = {None: 0.8, 0.5: 0.5, 1.0: 1.0}
    for share, expected in asked.items():
        wanted = replace(GOOD, high_noise_frac=share)
        assert completed(wanted, info).high_noise_frac == expected
    assert completed(GOOD).high_noise_frac is None


def test_all_violations_of_adapters_are_reported_at_once():
    loras = (LoraChoice(id="x", scale=99), *(LoraChoice(id=f"y{i}") for i in range(8)))
    assert found(loras=loras).keys() == {"loras", "loras[0].scale"} | {
        f"loras[{index}].id" for index in range(8)
    }


def test_an_adapter_without_a_scale_has_scale_one():
    loras = (LoraChoice(id="style"), LoraChoice(id="person", scale=-0.5))
    request = completed(replace(GOOD, loras=loras))
    assert request.loras == (LoraChoice(id="style"), LoraChoice(id="person", scale=-0.5))
    assert request.adapters == (("person", -0.5), ("style", 1.0))


def description_of(**fields: object) -> str:
    (violation,) = violations(replace(GOOD, **fields), INFO)
    return violation.description


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"prompt": ""}, "prompt", "REQUIRED"),
        ({"prompt": " \n"}, "prompt", "REQUIRED"),
        ({"prompt": "é" * 16_001}, "prompt", "TOO_LONG"),
        ({"negative_prompt": "x" * 32_001}, "negative_prompt", "TOO_LONG"),
        ({"width": 65}, "width", "NOT_A_MULTIPLE"),
        ({"height": 1023}, "height", "NOT_A_MULTIPLE"),
        ({"width": 56}, "width", "OUT_OF_RANGE"),
        ({"width": 1032}, "width", "OUT_OF_RANGE"),
        ({"height": -64}, "height", "OUT_OF_RANGE"),
        ({"num_images": 11}, "num_images", "OUT_OF_RANGE"),
        ({"num_images": -1}, "num_images", "OUT_OF_RANGE"),
        ({"seed": -1}, "seed", "OUT_OF_RANGE"),
        ({"num_inference_steps": 0}, "num_inference_steps", "OUT_OF_RANGE"),
        ({"num_inference_steps": 151}, "num_inference_steps", "OUT_OF_RANGE"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "NOT_FINITE"),
        ({"guidance_scale": float("inf")}, "guidance_scale", "NOT_FINITE"),
        ({"guidance_scale": float("-inf")}, "guidance_scale", "NOT_FINITE"),
        ({"guidance_scale": -0.1}, "guidance_scale", "OUT_OF_RANGE"),
        ({"guidance_scale": 50.1}, "guidance_scale", "OUT_OF_RANGE"),
        ({"scheduler_id": "warp"}, "scheduler.id", "UNKNOWN_SCHEDULER"),
        ({"sigmas": "beta"}, "scheduler.sigmas", "UNSUPPORTED_SIGMAS"),
        ({"scheduler_id": "heun", "sigmas": "karras"}, "scheduler.sigmas", "UNSUPPORTED_SIGMAS"),
        ({"clip_skip": -1}, "clip_skip", "OUT_OF_RANGE"),
        ({"clip_skip": 3}, "clip_skip", "OUT_OF_RANGE"),
        ({"high_noise_frac": 0.8}, "high_noise_frac", "UNSUPPORTED_FIELD"),
        ({"quality": 90}, "output.quality", "NOT_APPLICABLE"),
        ({"quality": 0, "format": ImageFormat.JPEG}, "output.quality", "OUT_OF_RANGE"),
        ({"quality": 101, "format": ImageFormat.WEBP}, "output.quality", "OUT_OF_RANGE"),
        ({"max_data_bytes": 65_535}, "output.max_data_bytes", "OUT_OF_RANGE"),
        ({"max_data_bytes": 4_000_001}, "output.max_data_bytes", "OUT_OF_RANGE"),
        ({"progress_interval_steps": -1}, "events.progress_interval_steps", "OUT_OF_RANGE"),
        ({"preview_interval_steps": 1001}, "events.preview_interval_steps", "OUT_OF_RANGE"),
        ({"preview_max_side": 15}, "events.preview_max_side", "OUT_OF_RANGE"),
        ({"priority": 101}, "priority", "OUT_OF_RANGE"),
        ({"priority": -101}, "priority", "OUT_OF_RANGE"),
        ({"user": "é" * 33}, "user", "TOO_LONG"),
        ({"labels": {str(i): "" for i in range(17)}}, "labels", "TOO_MANY"),
        ({"labels": {"": "x"}}, "labels", "BAD_LABEL"),
        ({"labels": {"k": "a\nb"}}, "labels", "BAD_LABEL"),
        ({"labels": {"k" * 65: "x"}}, "labels", "BAD_LABEL"),
        ({"unsupported_fields": ("resume",)}, "resume", "UNSUPPORTED_FIELD"),
        ({"loras": (LoraChoice(id="nobody"),)}, "loras[0].id", "UNKNOWN_LORA"),
        ({"loras": (LoraChoice(id=""),)}, "loras[0].id", "UNKNOWN_LORA"),
        ({"loras": (LoraChoice(id="../style"),)}, "loras[0].id", "UNKNOWN_LORA"),
        ({"loras": (LoraChoice(id="wide"),)}, "loras[0].id", "LORA_DOES_NOT_FIT"),
        ({"loras": (STYLE, LoraChoice(id="style", scale=2))}, "loras[1].id", "DUPLICATE"),
        ({"loras": (LoraChoice(id="style", scale=10.1),)}, "loras[0].scale", "OUT_OF_RANGE"),
        ({"loras": (STYLE, LoraChoice(id="person", scale=-11))}, "loras[1].scale", "OUT_OF_RANGE"),
        ({"loras": (LoraChoice(id="style", scale=math.nan),)}, "loras[0].scale", "NOT_FINITE"),
        ({"loras": (STYLE, LoraChoice(id="huge"))}, "loras", "TOO_LARGE"),
        ({"unknown_enums": (("output.format", 9),)}, "output.format", "UNKNOWN_VALUE"),
    ],
)
def test_a_value_out_of_bounds_is_reported_with_its_field(
    fields: dict[str, object], field: str, reason: str
):
    assert found(**fields) == {field: reason}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "é" * 16_000},
        {"width": 64, "height": 1024},
        {"width": 1024, "height": 1024},
        {"num_images": 10},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"num_inference_steps": 150},
        {"guidance_scale": 0.0},
        {"guidance_scale": 50.0},
        {"sigmas": "karras"},
        {"clip_skip": 2},
        {"quality": 1, "format": ImageFormat.JPEG},
        {"max_data_bytes": 65_536},
        {"priority": -100},
        {"user": "é" * 32},
        {"labels": {str(i): "v" * 64 for i in range(16)}},
    ],
)
def test_the_bounds_themselves_are_allowed(fields: dict[str, object]):
    assert found(**fields) == {}


def test_all_violations_are_reported_at_once():
    assert found(
        prompt="", width=-8, height=77, seed=-5, guidance_scale=float("nan"), quality=3
    ) == {
        "prompt": "REQUIRED",
        "width": "OUT_OF_RANGE",
        "height": "NOT_A_MULTIPLE",
        "seed": "OUT_OF_RANGE",
        "guidance_scale": "NOT_FINITE",
        "output.quality": "NOT_APPLICABLE",
    }


def test_descriptions_contain_the_value_and_the_alternatives():
    assert (
        description_of(width=77) == "width 77 is no multiple of 8; the nearest that work: 72 and 80"
    )
    assert description_of(num_images=11) == "num_images is 11; allowed: 1 to 10"
    assert description_of(width=2048) == "width is 2048; allowed: 64 to 1024 by 8"
    assert "'warp'" in description_of(scheduler_id="warp")
    assert "euler, euler-a, heun" in description_of(scheduler_id="warp")


def test_the_nearest_sizes_are_never_beyond_the_limits():
    narrow = replace(INFO, limits=replace(INFO.limits, max_side=1000))
    (violation,) = violations(replace(GOOD, width=999), narrow)
    assert violation.description.endswith("992 and 1000")
    narrow = replace(INFO, limits=replace(INFO.limits, max_side=999))
    (violation,) = violations(replace(GOOD, width=999), narrow)
    assert violation.description.endswith("that work: 992")


def test_valid_sides_may_be_too_many_pixels_together():
    small = replace(INFO, limits=replace(INFO.limits, max_pixels=512 * 512))
    (violation,) = violations(replace(GOOD, width=1024, height=512), small)
    assert violation.reason == "TOO_LARGE"
    assert violations(replace(GOOD, width=1024, height=256), small) == ()


def test_a_long_label_is_not_echoed_in_full():
    assert len(description_of(labels={"k" * 10_000: "v"})) < 300


def test_missing_fields_get_the_models_defaults():
    request = completed(GOOD, owner="o", seed=9, deadline=4.0)
    assert (request.width, request.height, request.num_inference_steps) == (64, 64, 4)
    assert (request.seed, request.num_images, request.guidance_scale) == (9, 1, 2.0)
    assert request.scheduler == SchedulerChoice(id="euler", sigmas="default")
    assert (request.model, request.owner, request.deadline) == ("fake", "o", 4.0)


def test_a_default_guidance_that_float32_cannot_represent_round_trips():
    info = replace(INFO, defaults=replace(INFO.defaults, guidance_scale=7.3))
    request = completed(GOOD, info)
    assert request.guidance_scale == 7.3
    sent = pb.GenerateImageRequest.FromString(effective_request(request).SerializeToString())
    assert sent.guidance_scale != 7.3
    assert completed(draft_from_proto(sent), info).guidance_scale == 7.3


def test_an_invalid_request_is_not_completed():
    with pytest.raises(InvalidRequest) as caught:
        completed(replace(GOOD, seed=-1))
    assert [one.field for one in caught.value.violations] == ["seed"]


def test_prompt_weights_are_checked_only_for_models_that_use_them():
    wanted = replace(GOOD, prompt="(a:11)", negative_prompt="(" * 40)
    assert violations(wanted, INFO) == ()
    info = replace(INFO, capabilities=("prompt-weighting",))
    reasons = {one.field: one.reason for one in violations(wanted, info)}
    assert reasons == {"prompt": "OUT_OF_RANGE", "negative_prompt": "TOO_DEEP"}
    assert violations(replace(GOOD, prompt="(a:10) [b] (c:-10)"), info) == ()


def test_a_prompt_that_is_too_long_is_not_searched_for_words():
    long = replace(GOOD, prompt="(a) " * 8_001)
    info = replace(INFO, capabilities=("prompt-weighting",))
    refused = RefusedWords(["a"])
    assert [one.reason for one in violations(long, info, refused_words=refused)] == ["TOO_LONG"]


@pytest.mark.parametrize("prompt", [r"scun\thorpe", "(scun:1)thorpe", "[scun]thorpe", "scunthorpe"])
def test_a_refused_word_is_not_hidden_by_prompt_weights(prompt: str):
    info = replace(INFO, capabilities=("prompt-weighting",))
    found = violations(
        replace(GOOD, prompt=prompt), info, refused_words=RefusedWords(["scunthorpe"])
    )
    assert [one.reason for one in found] == ["PROMPT_REFUSED"]
