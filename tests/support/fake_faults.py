"""Conditions and effects of the faults of a fake model: the parts of a ``Fault``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from tests.support.fakes import HELD_TOO_LONG, HOLD_TIMEOUT_S, Call

if TYPE_CHECKING:
    from collections.abc import Callable


def on_call(*numbers: int) -> Callable[[Call], bool]:
    """Condition: these calls, counted from 1."""
    return lambda call: call.number in numbers


def from_call(number: int) -> Callable[[Call], bool]:
    """Condition: this call and all later ones."""
    return lambda call: call.number >= number


def above_rows(num_rows: int) -> Callable[[Call], bool]:
    """Condition: the call has more rows than ``num_rows``."""
    return lambda call: call.num_rows > num_rows


def with_prompt(prompt: str) -> Callable[[Call], bool]:
    """Condition: a row of the call has this prompt."""
    return lambda call: prompt in call.prompts


def raising(error: Callable[[], Exception]) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """Effect: a new exception each time."""

    def effect(result: torch.Tensor, call: Call) -> torch.Tensor:
        del result, call
        raise error()

    return effect


def spoiling(prompt: str, value: float) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """Effect: the prediction of this prompt's rows is ``value``, for example NaN."""

    def effect(result: torch.Tensor, call: Call) -> torch.Tensor:
        rows = [row for row, of in enumerate(call.prompts) if of == prompt]
        result = result.clone()
        result[rows] = value
        return result

    return effect


def filled_with(value: float) -> Callable[[torch.Tensor, Call], torch.Tensor]:
    """Effect: the whole result is ``value``."""
    return lambda result, _: torch.full_like(result, value)


class Gate:
    """Effect: the call waits until the gate is opened."""

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
