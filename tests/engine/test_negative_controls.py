"""Engines broken on purpose: the checks that guard the real one must detect them."""

from __future__ import annotations

import pytest
import torch

from latentwire_server.engine.device import denoising, finishing
from latentwire_server.engine.handover import channel
from latentwire_server.engine.handover.generation import Generation
from tests.support.engine.detectors import (
    check_bad_row_ends_only_its_own,
    check_cancelled_is_in_no_later_call,
    check_late_reader,
)


async def test_a_channel_that_keeps_every_event_is_caught(start, monkeypatch) -> None:
    monkeypatch.setattr(channel, "_slot", lambda _, number: ("lossless", number))
    with pytest.raises(AssertionError, match="_waiting"):
        await check_late_reader(start)


async def test_a_cancel_that_is_ignored_is_caught(start, monkeypatch) -> None:
    monkeypatch.setattr(Generation, "cancel", lambda *_: False)
    with pytest.raises(AssertionError, match="Cancelled"):
        await check_cancelled_is_in_no_later_call(start)


async def test_a_cancel_that_only_ends_the_stream_is_caught(start, monkeypatch) -> None:
    monkeypatch.setattr(Generation, "is_ended", property(lambda _: False))
    with pytest.raises(AssertionError, match=r"assert \d+ == 1"):
        await check_cancelled_is_in_no_later_call(start)


async def test_a_finite_check_that_is_off_is_caught(start, monkeypatch) -> None:
    class BlindTorch:
        """torch, but everything is finite."""

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

        @staticmethod
        def isfinite(tensor: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(tensor, dtype=torch.bool)

    for module in (denoising, finishing):
        monkeypatch.setattr(module, "torch", BlindTorch())
    monkeypatch.setattr(finishing, "pixels_of", lambda _: torch.zeros(8, 8, 3).byte().numpy())
    with pytest.raises(AssertionError, match="NonFiniteOutput"):
        await check_bad_row_ends_only_its_own(start)
