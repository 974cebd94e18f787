"""Images that a safety checker withholds, and the events that report it."""

from __future__ import annotations

import pytest

from latentwire_server.engine.errors import PipelineFailed
from latentwire_server.engine.events import Accepted, Completed, FinishReason, Preview
from latentwire_server.engine.request import EventOptions, PreviewMethod
from tests.support.engine.driving import assert_expected_images
from tests.support.engine.requests import request
from tests.support.fakes import FakeModel, FakeSafetyChecker


async def test_a_flagged_image_is_withheld_and_the_others_are_complete(start) -> None:
    driver = await start(FakeModel(safety_checker=FakeSafetyChecker(lambda number: number == 2)))
    result = await driver.run(request(num_images=3, seed=20))
    assert result.is_complete
    assert [image.index for image in result.images] == [0, 1, 2]
    withheld = result.images[1]
    assert withheld.finish_reason is FinishReason.FILTERED
    assert (withheld.data, withheld.media_type, withheld.seed) == (b"", "", 21)
    assert all(result.images[index].data for index in (0, 2))
    [completed] = result.of_kind(Completed)
    assert completed.image_count == 3


async def test_the_checker_sees_each_finished_image_once_and_as_it_is_delivered(start) -> None:
    checker = FakeSafetyChecker(lambda _: False)
    driver = await start(FakeModel(safety_checker=checker))
    result = await driver.run(request(num_images=2))
    assert_expected_images(result)
    assert len(checker.seen) == 2
    for seen, delivered in zip(checker.seen, result.pixels, strict=True):
        assert (seen == delivered).all()


async def test_equal_requests_are_each_checked(start) -> None:
    checker = FakeSafetyChecker(lambda _: True)
    driver = await start(FakeModel(safety_checker=checker))
    results = await driver.run_held(request(), request())
    for result in results:
        assert [image.finish_reason for image in result.images] == [FinishReason.FILTERED]
    assert len(checker.seen) == 2


async def test_a_checker_that_fails_ends_that_generation_only(start) -> None:
    def rule(number: int) -> bool:
        if number == 1:
            message = "the safety checker computes NaN or infinity"
            raise ArithmeticError(message)
        return False

    driver = await start(FakeModel(safety_checker=FakeSafetyChecker(rule)))
    first, second = await driver.run_all(request("one"), request("two"))
    assert isinstance(first.error, PipelineFailed)
    assert first.images == []
    assert_expected_images(second)


@pytest.mark.parametrize("method", list(PreviewMethod))
async def test_unchecked_previews_are_withheld_with_a_warning(start, method: PreviewMethod) -> None:
    events = EventOptions(preview_interval_steps=1, preview_method=method)
    for hides in (True, False):
        checker = FakeSafetyChecker(lambda _: True, hides_previews=hides)
        driver = await start(FakeModel(safety_checker=checker))
        result = await driver.run(request(events=events))
        [accepted] = result.of_kind(Accepted)
        warned = [(warning.field, warning.reason) for warning in accepted.warnings]
        assert warned == [("events.preview_interval_steps", "PREVIEWS_WITHHELD")] * hides
        assert bool(result.of_kind(Preview)) is not hides
