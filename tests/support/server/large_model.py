"""A fake model with a smallest size at which it generates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from latentwire_server.models.info import ModelInfo


class LargeModel(FakeModel):
    """Generates images of less than 96x96 pixels at 128x128."""

    @property
    def info(self) -> ModelInfo:
        plain = super().info
        return replace(
            plain,
            limits=replace(plain.limits, min_drawn_pixels=96 * 96),
            defaults=replace(plain.defaults, width=128, height=128),
        )
