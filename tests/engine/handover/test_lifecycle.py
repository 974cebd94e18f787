"""The two life cycles, every pair of state and event."""

from __future__ import annotations

import itertools

import pytest

from latentwire_server.engine.handover.lifecycle import (
    GENERATION_TABLE,
    TRAJECTORY_TABLE,
    GenerationEvent,
    IllegalTransition,
    Stage,
    TrajectoryEvent,
    is_ended,
    next_stage,
    next_state,
)
from latentwire_server.engine.snapshots import GenerationState

GENERATION_PAIRS = list(itertools.product(GenerationState, GenerationEvent))
TRAJECTORY_PAIRS = list(itertools.product(Stage, TrajectoryEvent))


@pytest.mark.parametrize(("state", "event"), GENERATION_PAIRS)
def test_every_pair_of_generation_state_and_event_has_a_next_state_or_is_illegal(
    state: GenerationState, event: GenerationEvent
) -> None:
    after = GENERATION_TABLE[state, event]
    if after is None:
        with pytest.raises(IllegalTransition, match=state.value):
            next_state(state, event)
    else:
        assert next_state(state, event) is after


@pytest.mark.parametrize("event", GenerationEvent)
@pytest.mark.parametrize("state", [state for state in GenerationState if is_ended(state)])
def test_an_ended_generation_never_changes_state(
    state: GenerationState, event: GenerationEvent
) -> None:
    assert next_state(state, event) is state


@pytest.mark.parametrize("state", [state for state in GenerationState if not is_ended(state)])
def test_a_generation_can_be_cancelled_and_can_fail_at_any_moment(state: GenerationState) -> None:
    assert next_state(state, GenerationEvent.CANCEL) is GenerationState.CANCELLED
    assert next_state(state, GenerationEvent.FAIL) is GenerationState.FAILED


def test_only_a_running_generation_can_succeed() -> None:
    succeeding = [
        state
        for state, event in GENERATION_PAIRS
        if event is GenerationEvent.COMPLETE
        and GENERATION_TABLE[state, event] is GenerationState.SUCCEEDED
        and not is_ended(state)
    ]
    assert succeeding == [GenerationState.RUNNING]


@pytest.mark.parametrize(("stage", "event"), TRAJECTORY_PAIRS)
def test_every_pair_of_stage_and_event_has_a_next_stage_or_is_illegal(
    stage: Stage, event: TrajectoryEvent
) -> None:
    after = TRAJECTORY_TABLE[stage, event]
    if after is None:
        with pytest.raises(IllegalTransition, match=stage.value):
            next_stage(stage, event)
    else:
        assert next_stage(stage, event) is after


def test_a_trajectory_is_encoded_denoised_decoded_and_done() -> None:
    stage = Stage.ENCODING
    for event in (TrajectoryEvent.ENCODED, TrajectoryEvent.DENOISED, TrajectoryEvent.DECODED):
        stage = next_stage(stage, event)
    assert stage is Stage.DONE


@pytest.mark.parametrize("stage", Stage)
def test_a_trajectory_can_be_dropped_at_any_stage(stage: Stage) -> None:
    assert next_stage(stage, TrajectoryEvent.DROPPED) is Stage.DONE
