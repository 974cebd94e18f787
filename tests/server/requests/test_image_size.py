"""Pictures that are drawn larger than they are delivered."""

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
    ("asked", "drawn"),
    [
        ((512, 512), (1024, 1024)),
        ((256, 256), (1024, 1024)),
        ((768, 512), (1248, 832)),
        ((512, 768), (832, 1248)),
        # As large as the model is at its best, or nearly.
        ((1024, 1024), (1024, 1024)),
        ((768, 1024), (768, 1024)),
        ((1536, 640), (1536, 640)),
        ((2048, 2048), (2048, 2048)),
        # No side beyond the limit.
        ((1024, 64), (2048, 128)),
    ],
)
def test_small_pictures_are_drawn_at_the_models_own_number_of_pixels(asked, drawn):
    assert generated_size(*asked, info()) == drawn


def test_a_model_that_does_not_ask_for_it_draws_what_is_asked_for():
    assert generated_size(64, 64, info(min_drawn_pixels=0)) == (64, 64)


def test_the_limits_hold_for_what_is_drawn():
    for width in range(64, 1025, 8):
        for height in range(64, 1025, 64):
            limited = info(max_side=1280, max_pixels=900_000)
            drawn_width, drawn_height = generated_size(width, height, limited)
            assert width <= drawn_width <= 1280
            assert height <= drawn_height <= 1280
            assert drawn_width % 8 == drawn_height % 8 == 0
            if width * height < 786_432:
                assert drawn_width * drawn_height <= 900_000
                assert abs(drawn_width / width - drawn_height / height) < 0.2
