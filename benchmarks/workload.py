"""Workloads: kinds of requests and how they arrive, read from a TOML file."""

from __future__ import annotations

import random
import tomllib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from pathlib import Path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(_Part):
    """One kind of request in the mix."""

    weight: PositiveFloat = 1.0
    prompt: str = "a red circle on a blue background"
    width: PositiveInt
    height: PositiveInt
    num_inference_steps: PositiveInt
    scheduler: str = "dpmpp-2m"
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    deadline_s: PositiveFloat | None = None
    """Counted from sending the request."""
    preview_interval_steps: Annotated[int, Field(ge=0)] = 0
    cancel_after_steps: PositiveInt | None = None
    """The step at which the client leaves."""


class ClosedLoop(_Part):
    """A number of clients, each of which sends its next request once it has its image."""

    num_clients: PositiveInt
    num_requests: PositiveInt
    """All clients together."""


class OpenLoop(_Part):
    """Requests that arrive at random, whether or not the server keeps up."""

    share_of_capacity: PositiveFloat
    """The rate of arrival, as a share of the best rate of the closed loops."""
    num_requests: PositiveInt


class Interruption(_Part):
    """A short request that arrives while a long one runs, at another moment in each round."""

    long: Kind
    short: Kind


class Workload(_Part):
    """One file in `workloads/`."""

    name: str
    description: str
    model: Literal["embedded", "sd15"] = "embedded"
    max_rows: PositiveInt | None = None
    """The most rows of a denoiser call; by default, the server's batch-size probe decides."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    closed: Annotated[tuple[ClosedLoop, ...], Field(min_length=1)]
    open: tuple[OpenLoop, ...] = ()
    interruption: Interruption | None = None
    overhead: bool = False
    """Whether to measure what the service adds to a step, with the first kind."""


class Request(BaseModel):
    """One request of a kind."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    seed: int
    arrival_s: float = 0.0
    """Counted from the start of an open loop."""

    @property
    def prompt(self) -> str:
        """The kind's prompt with the seed, so that no system has encoded it before."""
        return f"{self.kind.prompt} {self.seed}"


def read_workload(path: Path) -> Workload:
    """Reads a workload.

    Raises:
        pydantic.ValidationError: the file has wrong or unknown fields.
    """
    return Workload.model_validate(tomllib.loads(path.read_text()))


def requests_of(
    workload: Workload, *, num_requests: int, seed: int | str, rate: float | None = None
) -> list[Request]:
    """Chooses requests from the mix at random; with a rate per second, Poisson arrivals too.

    All prompts differ, also between seeds, because the service caches encoded prompts.
    """
    rng = random.Random(f"{workload.name} {seed}")
    weights = [kind.weight for kind in workload.kinds]
    arrival_s, requests = 0.0, []
    for _ in range(num_requests):
        (kind,) = rng.choices(workload.kinds, weights)
        if rate is not None:
            arrival_s += rng.expovariate(rate)
        requests.append(Request(kind=kind, seed=rng.getrandbits(32), arrival_s=arrival_s))
    return requests
