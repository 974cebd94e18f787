"""From a draft to the engine's request: all violations at once, and no field is lost."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import pytest
from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.convert.requests import draft_from_proto, effective_request
from latentwire_server.engine.errors import InvalidRequest
from latentwire_server.engine.request import (
    EventOptions,
    GenerationRequest,
    ImageFormat,
    OutputOptions,
    PreviewMethod,
)
from latentwire_server.models.info import LoraChoice, LoraInfo
from latentwire_server.requests.completion import Assigned, complete
from latentwire_server.requests.draft import RequestDraft, SourceDraft
from tests.support.fakes import FakeModel

GIVEN = RequestDraft(
    prompt="a red circle",
    negative_prompt="blue",
    num_images=3,
    seed=11,
    num_inference_steps=5,
    guidance_scale=3.5,
    clip_skip=2,
    high_noise_frac=0.4,
    loras=(LoraChoice(id="style", scale=0.5),),
    format=ImageFormat.WEBP,
    quality=70,
    metadata_omitted=True,
    max_data_bytes=70_000,
    progress_interval_steps=2,
    preview_interval_steps=3,
    preview_method=PreviewMethod.FULL_VAE,
    preview_max_side=64,
    priority=7,
    user="somebody",
    labels={"team": "a"},
)
"""A value other than the default for each field that keeps its name."""
SETTLED = {"model", "width", "height", "high_resolution_fix", "source"}
"""Fields of the same name whose value is derived."""


class PickyModel(FakeModel):
    """Its scheduler refuses every number of steps."""

    def create_scheduler(self, *_: object, **__: object) -> None:
        raise ValueError


def file_of(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (64, 64), colour).save(out, "PNG")
    return out.getvalue()


def completed(draft: RequestDraft, model: FakeModel | None = None) -> GenerationRequest:
    model = model or FakeModel()
    assigned = Assigned(generation_id="g", owner="o", seed=1)
    return complete(draft, model, model.info, assigned=assigned)


def violations(draft: RequestDraft, model: FakeModel | None = None) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        completed(draft, model)
    return [(one.field, one.reason) for one in caught.value.violations]


def test_violations_of_files_masks_and_the_model_are_reported_together() -> None:
    source = SourceDraft(kind="inpainting", image=file_of(1), mask=file_of(0), strength=2)
    draft = RequestDraft(source=source, seed=-1)
    expected = {
        ("inpainting.strength", "OUT_OF_RANGE"),
        ("seed", "OUT_OF_RANGE"),
        ("inpainting.mask", "NOTHING_TO_DRAW"),
        ("num_inference_steps", "UNSUPPORTED_STEPS"),
    }
    assert set(violations(draft, PickyModel())) == expected
    bad_size = ("width", "NOT_A_MULTIPLE")
    assert set(violations(replace(draft, width=77), PickyModel())) == {*expected, bad_size}


def test_the_model_does_not_check_steps_that_are_already_out_of_range() -> None:
    reasons = violations(RequestDraft(prompt="a", num_inference_steps=0), PickyModel())
    assert reasons == [("num_inference_steps", "OUT_OF_RANGE")]


def test_every_given_field_reaches_the_engine() -> None:
    model = FakeModel(refiner=FakeModel(), loras=(LoraInfo(id="style", num_bytes=1),))
    request, plain = completed(GIVEN, model), completed(RequestDraft(prompt="x"), model)
    drafted = {field.name for field in fields(RequestDraft)}
    for target, default in (
        (request, plain),
        (request.output, plain.output),
        (request.events, plain.events),
    ):
        shared = {field.name for field in fields(target)} & drafted - SETTLED
        assert shared
        for name in shared:
            assert getattr(target, name) == getattr(GIVEN, name) != getattr(default, name), name
    assert not {field.name for field in (*fields(OutputOptions), *fields(EventOptions))} - drafted


def test_the_effective_request_is_completed_to_the_same_request() -> None:
    model = FakeModel(refiner=FakeModel(), loras=(LoraInfo(id="style", num_bytes=1),))
    request = completed(GIVEN, model)
    sent = pb.GenerateImageRequest.FromString(effective_request(request).SerializeToString())
    assert completed(draft_from_proto(sent), model) == request
