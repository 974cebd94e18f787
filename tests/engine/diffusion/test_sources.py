"""Trajectories that start from an image share calls with others and do not delay them."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from latentwire_server.engine.request import Source
from tests.support.engine.requests import request

if TYPE_CHECKING:
    import pytest


def source(seed: int, *, strength: float = 0.5, is_masked: bool = False) -> Source:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.full((64, 64), 255, np.uint8) if is_masked else None
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return Source(pixels=pixels, mask=mask, strength=strength, image_sha256=digest)


async def test_image_to_image_and_text_to_image_share_every_call(start) -> None:
    driver = await start(max_rows=16)
    results = await driver.run_held(
        request(num_inference_steps=5, seed=1),
        request(num_inference_steps=4, seed=2),
        request(num_inference_steps=8, source=source(1)),
        request(num_inference_steps=3, source=source(2, strength=1.0, is_masked=True)),
        request(num_inference_steps=4, seed=3),
    )
    assert all(result.is_complete for result in results)
    # The first is alone in the call that holds it; those after a source image join one call later.
    assert [call.num_rows for call in driver.model.calls] == [1, 3, 4, 5, 5, 1, 1]


async def test_other_generations_step_between_two_image_encodings(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await start(max_rows=16)
    model, encoded = driver.model, []
    denoise = model.denoise

    def counted(rows: object) -> object:
        encoded.append(model.num_encoded_images)
        return denoise(rows)

    monkeypatch.setattr(model, "denoise", counted)
    results = await driver.run_held(
        *(request(num_inference_steps=24, source=source(seed)) for seed in range(6))
    )
    assert all(result.is_complete for result in results)
    assert encoded[-1] == 6
    assert max(after - before for before, after in pairwise(encoded)) == 1


async def test_a_failed_image_encoding_affects_no_other_generation(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await start(max_rows=16)
    model, encode_image = driver.model, driver.model.encode_image

    def fails_once(image: object) -> object:
        monkeypatch.setattr(model, "encode_image", encode_image)
        raise RuntimeError

    monkeypatch.setattr(model, "encode_image", fails_once)
    broken, *others = await driver.run_all(
        *(request(source=source(seed), seed=seed) for seed in range(3))
    )
    assert sorted(result.is_complete for result in [broken, *others]) == [False, True, True]
