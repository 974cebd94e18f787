"""How one component of a model folder is read: with its weights, or without them.

Without them a component is what its configuration says, on torch's ``meta`` device: enough to
describe the model and to check requests, and made in a moment.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import diffusers
import torch

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    _Loaded = tuple[torch.nn.Module, dict[str, list[object]]]


class Reader(Protocol):
    """Reads a component."""

    def __call__(self, kind: object, place: Path, /, **options: object) -> torch.nn.Module:
        """Returns the component of a class in a folder.

        Args:
            kind: a model class of diffusers or transformers.
            place: its folder.
            options: of the class's ``from_pretrained``.

        Raises:
            LoadError: it is not whole.
        """


def with_weights(kind: object, place: Path, /, **options: object) -> torch.nn.Module:
    """Loads a component, and returns it if every tensor of it came from its file."""
    from_pretrained = cast("Callable[..., _Loaded]", kind.from_pretrained)  # type: ignore[attr-defined]  # untyped library
    module, report = from_pretrained(
        place,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    for problem in ("missing_keys", "mismatched_keys"):
        keys = [str(key) for key in report.get(problem) or () if "position_ids" not in str(key)]
        if keys:
            said = problem.replace("_keys", "")
            reason = f"{place.name} has {len(keys)} {said} tensors, first {keys[0]}"
            raise LoadError(str(place.parent), reason)
    return module


def without_weights(kind: object, place: Path, /, **options: object) -> torch.nn.Module:  # noqa: ARG001
    """Returns a component without storage."""
    class_ = cast("Any", kind)
    with torch.device("meta"):
        if issubclass(class_, diffusers.ModelMixin):
            config = class_.load_config(place, local_files_only=True)
            return cast("torch.nn.Module", class_.from_config(config))
        # transformers' classes take their configuration as an object.
        config = class_.config_class.from_pretrained(place, local_files_only=True)
        return cast("torch.nn.Module", class_(config))


class ReportingReader:
    """Loads components, and tells after each how much there is."""

    def __init__(self, report: Callable[[int, int], None], *, total_bytes: int) -> None:
        """Takes whom to tell, and what all components take."""
        self._report = report
        self._total_bytes = total_bytes
        self._loaded_bytes = 0
        report(0, total_bytes)

    def __call__(self, kind: object, place: Path, /, **options: object) -> torch.nn.Module:
        """Loads one more."""
        module = with_weights(kind, place, **options)
        self._loaded_bytes += sum(tensor.nbytes for tensor in module.state_dict().values())
        self._report(min(self._loaded_bytes, self._total_bytes), self._total_bytes)
        return module


_reader: Final[ContextVar[Reader]] = ContextVar("reader", default=with_weights)


def read_component(kind: object, place: Path, /, **options: object) -> torch.nn.Module:
    """Returns a component, read in the way that ``reading`` says."""
    return _reader.get()(kind, place, **options)


def has_weights() -> bool:
    """Returns whether what is read now has its weights."""
    return _reader.get() is not without_weights


@contextmanager
def reading(reader: Reader) -> Iterator[None]:
    """Reads components in another way, within the block and on this thread.

    What is between a model and its components need not know which way.
    """
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)
