"""One evaluation of a batch: gather rows, call the denoiser, tell apart what fails.

Device thread only. Pure first: nothing of a trajectory changes here, so that a call that fails can
be split and made again. Rows are independent (measured: a NaN row leaves its neighbours
bit-identical), hence the row, not the trajectory, is what gets split off and what turns bad.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.device.faults import (
    DeviceBroken,
    FaultKind,
    fault_kind,
    free_memory,
    out_of_memory,
    own_failure,
)
from latentwire_server.engine.errors import (
    Cancelled,
    GenerationError,
    NonFiniteOutput,
    PipelineFailed,
)
from latentwire_server.engine.policy.policy import padded_rows
from latentwire_server.models.protocol import Conditioning, DenoiserInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.engine.policy.policy import RowLimit
    from latentwire_server.models.protocol import DiffusionModel

_LOGGER = logging.getLogger(__name__)

Outcome = torch.Tensor | GenerationError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One row of a denoiser call, and whose it is."""

    trajectory: Trajectory
    latents: torch.Tensor
    timestep: float
    conditioning: Conditioning


class Denoiser:
    """Evaluates batches of trajectories that share a group."""

    def __init__(self, *, row_limit: RowLimit, estimator: Estimator, is_reproducible: bool) -> None:
        self._row_limit = row_limit
        self._estimator = estimator
        self._is_reproducible = is_reproducible
        self.num_calls = 0
        """Calls that went well. Read by any thread."""
        self.num_rows = 0
        """Rows of those calls, padding not counted."""
        self.num_places = 0
        """Rows that those calls could have had."""

    def evaluate(self, batch: Sequence[Trajectory]) -> dict[str, Outcome]:
        """Returns each trajectory's prediction, or why it has none; of those cancelled, nothing.

        Raises:
            DeviceBroken: the device is broken.
        """
        outcomes: dict[str, Outcome] = {}
        rows: list[Row] = []
        for trajectory in batch:
            try:
                rows.extend(_rows_of(trajectory))
            except Exception as error:  # Border: the device loop
                outcomes[trajectory.generation.id] = own_failure(error, trajectory.request)
        predictions: dict[str, list[Outcome]] = {}
        if rows:
            for row, prediction in zip(rows, self._predict_each(rows), strict=True):
                predictions.setdefault(row.trajectory.generation.id, []).append(prediction)
        for trajectory in batch:
            own = predictions.get(trajectory.generation.id)
            if own is not None and not trajectory.generation.is_ended:
                outcomes[trajectory.generation.id] = _joined(own)
        return outcomes

    def _predict_each(self, rows: list[Row]) -> list[Outcome]:
        """Predicts rows in calls as large as the group's limit allows."""
        predictions: list[Outcome] = []
        while len(predictions) < len(rows):
            # Asked anew for each call: it may have been lowered by the one before.
            limit = self._row_limit.of(rows[0].trajectory.group)
            start = len(predictions)
            predictions.extend(self._predict(rows[start : start + limit]))
        return predictions

    def _predict(self, rows: list[Row]) -> list[Outcome]:
        """Makes one call; what fails is split or made again one trajectory at a time."""
        wanted = [row for row in rows if not row.trajectory.generation.is_ended]
        if not wanted:
            return [Cancelled() for _ in rows]
        group = wanted[0].trajectory.group
        kind, error_id = FaultKind.UNKNOWN, ""
        try:
            predictions = self._call(wanted)
        except Exception as error:  # Border: the device loop
            kind, error_id = fault_kind(error), uuid.uuid4().hex[:12]
            if kind is not FaultKind.OUT_OF_MEMORY:
                _LOGGER.exception("denoiser call failed error_id=%s rows=%d", error_id, len(wanted))
            error.__traceback__ = None
        else:
            self._row_limit.count_call(group)
            self.num_calls += 1
            self.num_rows += len(wanted)
            self.num_places += self._row_limit.of(group)
            outcomes = dict(zip(map(id, wanted), predictions, strict=True))
            return [outcomes.get(id(row), Cancelled()) for row in rows]
        if kind is FaultKind.DEVICE:
            raise DeviceBroken(error_id)
        if kind is FaultKind.OUT_OF_MEMORY:
            return self._predict_smaller(rows, num_failed=self._padded(wanted))
        return self._predict_apart(rows, error_id=error_id)

    def _predict_smaller(self, rows: list[Row], *, num_failed: int) -> list[Outcome]:
        free_memory()
        if num_failed == 1:
            return [out_of_memory(row.trajectory.request) for row in rows]
        self._row_limit.lower(rows[0].trajectory.group, failed_rows=num_failed)
        # In reproducible mode the promise of equal bytes pauses with it: smaller calls round
        # differently, and a picture that differs in its last bits beats none.
        _LOGGER.warning(
            "denoiser call ran out of memory model=%s rows=%d",
            rows[0].trajectory.request.model,
            num_failed,
        )
        return self._predict_each(rows)

    def _predict_apart(self, rows: list[Row], *, error_id: str) -> list[Outcome]:
        by_trajectory: dict[str, list[Row]] = {}
        for row in rows:
            by_trajectory.setdefault(row.trajectory.generation.id, []).append(row)
        if len(by_trajectory) == 1:
            return [PipelineFailed(error_id=error_id) for _ in rows]
        # Rows of a trajectory are neighbours, so that the order stays.
        return [prediction for own in by_trajectory.values() for prediction in self._predict(own)]

    def _call(self, rows: Sequence[Row]) -> list[Outcome]:
        """Calls the model once, padded with copies of the first row."""
        first = rows[0].trajectory
        model: DiffusionModel = first.phase.model
        started = time.monotonic()
        padded = [*rows, *[rows[0]] * (self._padded(rows) - len(rows))]
        latents = torch.stack([row.latents for row in padded])
        prediction = model.denoise(
            DenoiserInput(
                latents=latents,
                timesteps=torch.tensor([row.timestep for row in padded], dtype=torch.float32),
                conditioning=[row.conditioning for row in padded],
            )
        )[: len(rows)]
        # Of the latents too, which the step before may have made overflow.
        finite = torch.isfinite(prediction) & torch.isfinite(latents[: len(rows)])
        # On an asynchronous device this waits for the call: the one wait of a step.
        are_finite = finite.flatten(1).all(1).tolist()
        self._estimator.record_call(
            first.group,
            num_rows=len(padded),
            seconds=time.monotonic() - started,
        )
        return [
            row_prediction if is_finite else NonFiniteOutput(step=row.trajectory.step)
            for row, row_prediction, is_finite in zip(rows, prediction, are_finite, strict=True)
        ]

    def _padded(self, rows: Sequence[Row]) -> int:
        """Returns how many rows a call with these really has."""
        return padded_rows(
            len(rows),
            max_rows=self._row_limit.of(rows[0].trajectory.group),
            is_reproducible=self._is_reproducible,
        )


def _rows_of(trajectory: Trajectory) -> list[Row]:
    rows = trajectory.rows()
    return [
        Row(
            trajectory=trajectory,
            latents=latents,
            timestep=rows.timestep,
            conditioning=conditioning,
        )
        for latents, conditioning in zip(rows.latents, rows.conditioning, strict=True)
    ]


def _joined(predictions: Sequence[Outcome]) -> Outcome:
    tensors: list[torch.Tensor] = []
    for prediction in predictions:
        if isinstance(prediction, GenerationError):
            return prediction
        tensors.append(prediction)
    return torch.stack(tensors)
