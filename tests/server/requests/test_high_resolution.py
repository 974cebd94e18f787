"""When an image is generated in two passes, tested with plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentwire_server.convert.requests import draft_from_proto, effective_request
from latentwire_server.engine.request import GenerationRequest, HighResolutionFix
from latentwire_server.requests.completion import Assigned, complete
from latentwire_server.requests.draft import HighResolutionFixDraft, RequestDraft
from latentwire_server.requests.image_size import settle_size
from latentwire_server.requests.validation import violations
from tests.support.fakes import FakeModel

PLAIN = FakeModel().info
INFO = replace(PLAIN, defaults=replace(PLAIN.defaults, high_resolution_fix=0.5))
GOOD = RequestDraft(prompt="a red circle", width=128, height=128)


def completed(draft: RequestDraft, info=INFO) -> GenerationRequest:
    assigned = Assigned(generation_id="g", owner="", seed=1)
    return complete(draft, FakeModel(), info, assigned=assigned)


@pytest.mark.parametrize(
    ("width", "height", "first_pass"),
    [
        (64, 64, None),
        (96, 64, None),
        (104, 64, (80, 64)),
        (128, 128, (64, 64)),
        (256, 64, (128, 64)),
        (512, 512, (64, 64)),
    ],
)
def test_above_one_and_a_half_times_the_models_area_there_are_two_passes(
    width: int, height: int, first_pass: tuple[int, int] | None
) -> None:
    fix = completed(replace(GOOD, width=width, height=height)).high_resolution_fix
    assert (fix and (fix.width, fix.height)) == first_pass


def test_the_model_the_caller_or_the_steps_can_disable_it() -> None:
    for_none = replace(PLAIN.defaults, high_resolution_fix=0.0)
    assert completed(GOOD, PLAIN).high_resolution_fix is None
    assert completed(GOOD, replace(PLAIN, defaults=for_none)).high_resolution_fix is None
    assert completed(replace(GOOD, num_inference_steps=1)).high_resolution_fix is None
    declined = replace(GOOD, high_resolution_fix=HighResolutionFixDraft(is_disabled=True))
    assert completed(declined).high_resolution_fix is None


def test_a_caller_may_request_it_with_a_strength() -> None:
    wanted = replace(GOOD, width=96, height=64)
    asked = replace(wanted, high_resolution_fix=HighResolutionFixDraft(strength=0.25))
    fix = completed(asked).high_resolution_fix
    assert fix == HighResolutionFix(width=80, height=64, strength=0.25)
    request = completed(replace(asked, num_inference_steps=8))
    assert request.num_steps == 8 + 2


@pytest.mark.parametrize(
    ("wanted", "num_steps"),
    [
        (None, 15),
        (HighResolutionFixDraft(is_disabled=True), 10),
        (HighResolutionFixDraft(strength=0.7), 17),
    ],
)
def test_the_effective_request_has_the_same_passes(
    wanted: HighResolutionFixDraft | None, num_steps: int
) -> None:
    request = completed(replace(GOOD, high_resolution_fix=wanted, num_inference_steps=10))
    again = completed(draft_from_proto(effective_request(request)))
    assert again.high_resolution_fix == request.high_resolution_fix
    assert again.num_steps == request.num_steps == num_steps


@pytest.mark.parametrize(
    ("fix", "changes", "field", "reason"),
    [
        ({"strength": 0.0}, {}, "high_resolution_fix.strength", "OUT_OF_RANGE"),
        ({"strength": 1.1}, {}, "high_resolution_fix.strength", "OUT_OF_RANGE"),
        ({"strength": float("nan")}, {}, "high_resolution_fix.strength", "OUT_OF_RANGE"),
        ({"strength": 0.2}, {}, "high_resolution_fix.strength", "NO_STEP_LEFT"),
        (
            {"strength": 0.5, "is_disabled": True},
            {},
            "high_resolution_fix.strength",
            "NOT_APPLICABLE",
        ),
        ({}, {"width": 64, "height": 64}, "high_resolution_fix", "NOT_APPLICABLE"),
    ],
)
def test_invalid_values_are_refused_by_name(
    fix: dict[str, object], changes: dict[str, int], field: str, reason: str
) -> None:
    draft = replace(GOOD, high_resolution_fix=HighResolutionFixDraft(**fix), **changes)
    (found,) = violations(draft, settle_size(draft, None, INFO), INFO)
    assert (found.field, found.reason) == (field, reason)


def test_a_model_without_it_refuses_the_field() -> None:
    draft = replace(GOOD, high_resolution_fix=HighResolutionFixDraft())
    (found,) = violations(draft, settle_size(draft, None, PLAIN), PLAIN)
    assert (found.field, found.reason) == ("high_resolution_fix", "UNSUPPORTED_FIELD")
