"""When and how a fake model breaks: the parts of a ``Fault``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from tests.support.fakes import HELD_TOO_LONG, HOLD_TIMEOUT_S, Call

if TYPE_CHECKING:
    from collections.abc import Callable


def on_call(*numbers: int) -> Callable[[Call], bool]:
    """When: on these calls, counted from 1."""
    return lambda call: call.number in numbers


def from_call(number: int) -> Callable[[Call], bool]:
    """When: on this call and all after it."""
    return lambda call: call.number >= number


def above_rows(num_rows: int) -> Callable[[Call], bool]:
    """When: the call has more rows than that."""
    return lambda call: call.num_rows > num_rows


def with_prompt(prompt: str) -> Callable[[Call], bool]:
    """When: a row of the call has this prompt."""
    return lambda call: prompt in call.prompts


def raising(error: Callable[[], Exception]) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """What: a new exception each time."""

    def what(result: torch.Tensor, call: Call) -> torch.Tensor:
        del result, call
        raise error()

    return what


def spoiling(prompt: str, value: float) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """What: the prediction of this prompt's rows is this value, NaN for example."""

    def what(result: torch.Tensor, call: Call) -> torch.Tensor:
        rows = [row for row, of in enumerate(call.prompts) if of == prompt]
        result = result.clone()
        result[rows] = value
        return result

    return what


def filled_with(value: float) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """What: all of it is this value."""
    return lambda result, _: torch.full_like(result, value)


class Gate:
    """What: the call waits here until it is opened."""

    def __init__(self) -> None:
        self._is_reached = threading.Event()
        self._is_open = threading.Event()

    @property
    def is_reached(self) -> bool:
        return self._is_reached.is_set()

    def open(self) -> None:
        self._is_open.set()

    def __call__(self, result: torch.Tensor, call: Call) -> torch.Tensor:
        del call
        self._is_reached.set()
        if not self._is_open.wait(HOLD_TIMEOUT_S):
            raise AssertionError(HELD_TOO_LONG)
        return result
