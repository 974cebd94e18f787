"""One evaluation of a batch: gather the rows, call the denoiser, separate the failures.

Device thread only. Nothing of a trajectory changes here, so that a call that fails can be split and
made again. Rows are independent (measured: a NaN row leaves its neighbours bit-identical), hence a
batch is split by row, and it is a row that turns bad.
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
    as_generation_error,
    fault_kind,
    free_memory,
    out_of_memory,
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
    """One row of a denoiser call, with its trajectory."""

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
        """Successful calls. Read by any thread."""
        self.num_rows = 0
        """Rows of those calls, padding not counted."""
        self.num_places = 0
        """Rows that those calls could have had."""

    def evaluate(self, batch: Sequence[Trajectory]) -> dict[str, Outcome]:
        """Returns the prediction or the failure of each trajectory that has not ended, by id.

        Raises:
            DeviceBroken: The device is broken.
        """
        outcomes: dict[str, Outcome] = {}
        rows: list[Row] = []
        for trajectory in batch:
            try:
                rows.extend(_rows_of(trajectory))
            except Exception as error:  # Border: the device loop
                outcomes[trajectory.generation.id] = as_generation_error(error, trajectory.request)
        predictions: dict[str, list[Outcome]] = {}
        if rows:
            for row, prediction in zip(rows, self._predict_all(rows), strict=True):
                predictions.setdefault(row.trajectory.generation.id, []).append(prediction)
        for trajectory in batch:
            own = predictions.get(trajectory.generation.id)
            if own is not None and not trajectory.generation.is_ended:
                outcomes[trajectory.generation.id] = _joined(own)
        return outcomes

    def _predict_all(self, rows: list[Row]) -> list[Outcome]:
        """Predicts rows in calls as large as the group's limit allows."""
        predictions: list[Outcome] = []
        while len(predictions) < len(rows):
            # Read before each call: the call before may have lowered it.
            limit = self._row_limit.of(rows[0].trajectory.group)
            start = len(predictions)
            predictions.extend(self._predict(rows[start : start + limit]))
        return predictions

    def _predict(self, rows: list[Row]) -> list[Outcome]:
        """Makes one call; if it fails, makes smaller ones, or one for each trajectory."""
        active = [row for row in rows if not row.trajectory.generation.is_ended]
        if not active:
            return [Cancelled() for _ in rows]
        group = active[0].trajectory.group
        kind, error_id = FaultKind.UNKNOWN, ""
        try:
            predictions = self._call(active)
        except Exception as error:  # Border: the device loop
            kind, error_id = fault_kind(error), uuid.uuid4().hex[:12]
            if kind is not FaultKind.OUT_OF_MEMORY:
                _LOGGER.exception("denoiser call failed error_id=%s rows=%d", error_id, len(active))
            error.__traceback__ = None
        else:
            self._row_limit.count_call(group)
            self.num_calls += 1
            self.num_rows += len(active)
            self.num_places += self._row_limit.of(group)
            outcomes = dict(zip(map(id, active), predictions, strict=True))
            return [outcomes.get(id(row), Cancelled()) for row in rows]
        if kind is FaultKind.DEVICE:
            raise DeviceBroken(error_id)
        if kind is FaultKind.OUT_OF_MEMORY:
            return self._predict_smaller(rows, num_failed=self._num_padded(active))
        return self._predict_separately(rows, error_id=error_id)

    def _predict_smaller(self, rows: list[Row], *, num_failed: int) -> list[Outcome]:
        free_memory()
        if num_failed == 1:
            return [out_of_memory(row.trajectory.request) for row in rows]
        self._row_limit.lower(rows[0].trajectory.group, failed_rows=num_failed)
        # In reproducible mode this suspends the promise of equal bytes: smaller calls round
        # differently, and an image that differs in its last bits is better than none.
        _LOGGER.warning(
            "denoiser call ran out of memory model=%s rows=%d",
            rows[0].trajectory.request.model,
            num_failed,
        )
        return self._predict_all(rows)

    def _predict_separately(self, rows: list[Row], *, error_id: str) -> list[Outcome]:
        by_trajectory: dict[str, list[Row]] = {}
        for row in rows:
            by_trajectory.setdefault(row.trajectory.generation.id, []).append(row)
        if len(by_trajectory) == 1:
            return [PipelineFailed(error_id=error_id) for _ in rows]
        # The rows of a trajectory are neighbours, so that the order stays.
        return [prediction for own in by_trajectory.values() for prediction in self._predict(own)]

    def _call(self, rows: Sequence[Row]) -> list[Outcome]:
        """Calls the model once, padded with copies of the first row."""
        first = rows[0].trajectory
        model: DiffusionModel = first.phase.model
        started = time.monotonic()
        padded = [*rows, *[rows[0]] * (self._num_padded(rows) - len(rows))]
        latents = torch.stack([row.latents for row in padded])
        prediction = model.denoise(
            DenoiserInput(
                latents=latents,
                timesteps=torch.tensor([row.timestep for row in padded], dtype=torch.float32),
                conditioning=[row.conditioning for row in padded],
            )
        )[: len(rows)]
        # The latents are checked too: the step before may have made them overflow.
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

    def _num_padded(self, rows: Sequence[Row]) -> int:
        """Returns how many rows a call with these has, padding included."""
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
    """Returns the rows' predictions as one tensor, or the first failure among them."""
    tensors: list[torch.Tensor] = []
    for prediction in predictions:
        if isinstance(prediction, GenerationError):
            return prediction
        tensors.append(prediction)
    return torch.stack(tensors)
