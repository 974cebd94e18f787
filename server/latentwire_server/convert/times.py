"""Converts seconds to protobuf's time types."""

from __future__ import annotations

from google.protobuf import duration_pb2, timestamp_pb2


def duration(seconds: float | None) -> duration_pb2.Duration | None:
    """Returns a time span, never negative; None, which leaves a field unset, for None."""
    if seconds is None:
        return None
    value = duration_pb2.Duration()
    value.FromMicroseconds(round(max(0.0, seconds) * 1e6))
    return value


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Returns a moment, given in seconds since the epoch."""
    value = timestamp_pb2.Timestamp()
    value.FromMicroseconds(round(seconds * 1e6))
    return value
