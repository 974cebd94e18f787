"""Images that are generated larger than they are delivered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from latentwire_server.requests.image_size import generated_size
from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from latentwire_server.models.info import ModelInfo


def info(*, native: int = 1024, **limits: int) -> ModelInfo:
    plain = FakeModel().info
    return replace(
        plain,
        limits=replace(
            plain.limits,
            **{"max_side": 2048, "max_pixels": 2048**2, "min_drawn_pixels": 786_432, **limits},
        ),
        defaults=replace(plain.defaults, width=native, height=native),
    )


@pytest.mark.parametrize(
    ("requested", "generated"),
    [
        ((512, 512), (1024, 1024)),
        ((256, 256), (1024, 1024)),
        ((768, 512), (1248, 832)),
        ((512, 768), (832, 1248)),
        # At or near the model's own size.
        ((1024, 1024), (1024, 1024)),
        ((768, 1024), (768, 1024)),
        ((1536, 640), (1536, 640)),
        ((2048, 2048), (2048, 2048)),
        # No side beyond the limit.
        ((1024, 64), (2048, 128)),
    ],
)
def test_small_images_are_generated_with_the_models_own_number_of_pixels(requested, generated):
    assert generated_size(*requested, info()) == generated


def test_a_model_without_a_minimum_generates_the_requested_size():
    assert generated_size(64, 64, info(min_drawn_pixels=0)) == (64, 64)


def test_the_generated_size_respects_the_limits():
    for width in range(64, 1025, 8):
        for height in range(64, 1025, 64):
            limited = info(max_side=1280, max_pixels=900_000)
            generated_width, generated_height = generated_size(width, height, limited)
            assert width <= generated_width <= 1280
            assert height <= generated_height <= 1280
            assert generated_width % 8 == generated_height % 8 == 0
            if width * height < 786_432:
                assert generated_width * generated_height <= 900_000
                assert abs(generated_width / width - generated_height / height) < 0.2
