"""The life cycles of a generation and of a trajectory, as tables.

Pure values, any thread. Every pair of state and event is in its table, so that no transition is
left undefined. An ended generation stays as it ended: of two ends that race, the first one counts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from latentwire_server.engine.snapshots import GenerationState

if TYPE_CHECKING:
    from collections.abc import Mapping


class GenerationEvent(StrEnum):
    """The events in the life of a generation."""

    START = "start"
    """It leaves the queue, and its first device work begins."""
    COMPLETE = "complete"
    """All its images are delivered."""
    FAIL = "fail"
    """It failed, or the server did."""
    CANCEL = "cancel"
    """Its caller cancelled it, or its deadline passed."""


class Stage(StrEnum):
    """The next work of a trajectory."""

    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    DONE = "done"


class TrajectoryEvent(StrEnum):
    """The events in the life of a trajectory."""

    ENCODED = "encoded"
    DENOISED = "denoised"
    """Its last denoiser evaluation is done."""
    DECODED = "decoded"
    """Its last image is decoded."""
    DROPPED = "dropped"
    """Its generation ended before the work did."""


class IllegalTransition(Exception):
    """The engine has a bug: this event cannot happen in this state."""


_S = GenerationState
_E = GenerationEvent

GENERATION_TABLE: Mapping[tuple[GenerationState, GenerationEvent], GenerationState | None] = {
    (_S.QUEUED, _E.START): _S.RUNNING,
    (_S.QUEUED, _E.COMPLETE): None,
    (_S.QUEUED, _E.FAIL): _S.FAILED,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    (_S.RUNNING, _E.START): None,
    (_S.RUNNING, _E.COMPLETE): _S.SUCCEEDED,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
    **{(ended, event): ended for ended in (_S.SUCCEEDED, _S.FAILED, _S.CANCELLED) for event in _E},
}
"""State and event to the next state; ``None`` where the event is impossible."""

_T = TrajectoryEvent

TRAJECTORY_TABLE: Mapping[tuple[Stage, TrajectoryEvent], Stage | None] = {
    (Stage.ENCODING, _T.ENCODED): Stage.DENOISING,
    (Stage.ENCODING, _T.DENOISED): None,
    (Stage.ENCODING, _T.DECODED): None,
    (Stage.ENCODING, _T.DROPPED): Stage.DONE,
    (Stage.DENOISING, _T.ENCODED): None,
    (Stage.DENOISING, _T.DENOISED): Stage.DECODING,
    (Stage.DENOISING, _T.DECODED): None,
    (Stage.DENOISING, _T.DROPPED): Stage.DONE,
    (Stage.DECODING, _T.ENCODED): None,
    (Stage.DECODING, _T.DENOISED): None,
    (Stage.DECODING, _T.DECODED): Stage.DONE,
    (Stage.DECODING, _T.DROPPED): Stage.DONE,
    (Stage.DONE, _T.ENCODED): None,
    (Stage.DONE, _T.DENOISED): None,
    (Stage.DONE, _T.DECODED): None,
    (Stage.DONE, _T.DROPPED): Stage.DONE,
}
"""Stage and event to the next stage; ``None`` where the event is impossible."""


def is_ended(state: GenerationState) -> bool:
    """Returns whether ``state`` is final."""
    return state not in {GenerationState.QUEUED, GenerationState.RUNNING}


def next_state(state: GenerationState, event: GenerationEvent) -> GenerationState:
    """Returns the state of a generation after ``event``.

    Raises:
        IllegalTransition: The event cannot happen in this state.
    """
    after = GENERATION_TABLE[state, event]
    if after is None:
        message = f"a generation that is {state} cannot {event}"
        raise IllegalTransition(message)
    return after


def next_stage(stage: Stage, event: TrajectoryEvent) -> Stage:
    """Returns the stage of a trajectory after ``event``.

    Raises:
        IllegalTransition: The event cannot happen in this stage.
    """
    after = TRAJECTORY_TABLE[stage, event]
    if after is None:
        message = f"a trajectory in {stage} cannot be {event}"
        raise IllegalTransition(message)
    return after
