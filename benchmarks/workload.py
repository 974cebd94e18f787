"""What is asked for: kinds of requests and how they arrive, read from a TOML file."""

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
    """From submission; what is later counts as missed."""
    preview_interval_steps: Annotated[int, Field(ge=0)] = 0
    cancel_after_steps: PositiveInt | None = None
    """The client leaves at this step."""


class ClosedLoop(_Part):
    """So many clients, each of which asks again as soon as it was answered."""

    num_clients: PositiveInt
    num_requests: PositiveInt
    """Of all clients together."""


class OpenLoop(_Part):
    """Requests that arrive at random, whether or not the server keeps up."""

    share_of_capacity: PositiveFloat
    num_requests: PositiveInt


class Interruption(_Part):
    """A short request arrives while a long one runs, at a random moment."""

    long: Kind
    short: Kind


class Workload(_Part):
    """A file of `workloads/`."""

    name: str
    description: str
    model: Literal["embedded", "sd15"] = "embedded"
    max_rows: PositiveInt | None = None
    """Of a denoiser call; by default what the server finds best."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    closed: Annotated[tuple[ClosedLoop, ...], Field(min_length=1)]
    open: tuple[OpenLoop, ...] = ()
    """At these shares of the best rate of the closed loops."""
    interruption: Interruption | None = None
    overhead: bool = False
    """Whether what the service adds to a step of the first kind is measured."""


class Request(BaseModel):
    """One request: its kind, its seed, and when it is sent."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    seed: int
    arrival_s: float = 0.0
    """Since the start, in an open loop."""

    @property
    def prompt(self) -> str:
        """The kind's prompt, made different for each: nobody has it encoded already."""
        return f"{self.kind.prompt} {self.seed}"


def read_workload(path: Path) -> Workload:
    """Reads a file; pydantic names what is wrong."""
    return Workload.model_validate(tomllib.loads(path.read_text()))


def requests_of(
    workload: Workload, *, num_requests: int, seed: int | str, rate: float | None = None
) -> list[Request]:
    """Draws requests from the mix; with a rate in requests per second, Poisson arrivals too.

    No two have the same prompt, nor do those of another seed: the service remembers encoded
    prompts.
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
