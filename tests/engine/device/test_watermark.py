"""Which images carry the model's watermark, and which do not."""

from __future__ import annotations

import numpy as np

from latentwire_server.engine.events import Preview
from latentwire_server.engine.request import EventOptions, Source
from tests.support.engine.driving import pixels_of_file
from tests.support.engine.requests import request
from tests.support.fakes import FakeModel, FakeSafetyChecker, FakeWatermark


async def test_finished_images_carry_the_watermark_and_previews_do_not(start) -> None:
    driver, plain = await start(FakeModel(watermark=FakeWatermark())), await start(FakeModel())
    every_step = EventOptions(preview_interval_steps=1)
    asked = request(num_images=2, events=every_step)
    marked, unmarked = await driver.run(asked), await plain.run(asked)
    for one, other in zip(marked.pixels, unmarked.pixels, strict=True):
        assert np.abs(255 - one.astype(int) - other).max() <= 1
    previews = [pixels_of_file(preview.data) for preview in marked.of_kind(Preview)]
    colours = [one.mean((0, 1)) for one in (previews[-1], unmarked.pixels[-1], marked.pixels[-1])]
    assert np.abs(colours[0] - colours[1]).max() < np.abs(colours[0] - colours[2]).max() / 4


async def test_the_safety_checker_sees_the_watermark(start) -> None:
    checker = FakeSafetyChecker(lambda _: False)
    driver = await start(FakeModel(watermark=FakeWatermark(), safety_checker=checker))
    result = await driver.run(request())
    assert (checker.seen[0] == result.pixels[0]).all()


async def test_the_watermark_is_applied_after_the_image_is_scaled_down(start) -> None:
    sizes = []

    class Watched(FakeWatermark):
        def applied(self, image):
            sizes.append(tuple(image.shape))
            return super().applied(image)

    driver, plain = await start(FakeModel(watermark=Watched())), await start(FakeModel())
    asked = request(width=128, height=128, delivered_size=(64, 48))
    marked, unmarked = await driver.run(asked), await plain.run(asked)
    assert sizes == [(3, 48, 64)]
    assert (marked.pixels[0] == 255 - unmarked.pixels[0]).all()


async def test_unmasked_pixels_stay_as_they_are_and_carry_no_watermark(start) -> None:
    kept = np.full((64, 64, 3), 40, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    source = Source(
        pixels=kept, mask=mask, strength=1.0, image_sha256=b"i" * 32, mask_sha256=b"m" * 32
    )
    driver = await start(FakeModel(watermark=FakeWatermark()), mask_feather=0)
    plain = await start(FakeModel(), mask_feather=0)
    asked = request(source=source)
    marked, unmarked = await driver.run(asked), await plain.run(asked)
    assert (marked.pixels[0][:, :32] == 40).all()
    assert (marked.pixels[0][:, 32:] == 255 - unmarked.pixels[0][:, 32:]).all()
