"""How one component of a model is read: with its weights, or without them.

Without weights a component is made from its configuration on torch's ``meta`` device: enough to
describe the model and to check requests, and done in a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import diffusers
import torch

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latentwire_server.models.files.hub import Report

    _Loaded = tuple[torch.nn.Module, dict[str, list[object]]]


class ComponentReader(Protocol):
    """Makes a component from its folder."""

    has_weights: ClassVar[bool]

    def read(
        self, kind: object, place: Path, config: Mapping[str, object], **options: object
    ) -> torch.nn.Module:
        """Returns a component.

        Args:
            kind: a model class of diffusers or transformers.
            place: its folder.
            config: the content of its ``config.json``.
            options: of the class's ``from_pretrained``.

        Raises:
            LoadError: tensors are missing or have other shapes.
        """


class ConfigurationReader:
    """Makes components without storage."""

    has_weights: ClassVar = False

    def read(
        self,
        kind: object,
        place: Path,  # noqa: ARG002 - the protocol's signature
        config: Mapping[str, object],
        **options: object,  # noqa: ARG002
    ) -> torch.nn.Module:
        """Returns a component on the ``meta`` device."""
        class_ = cast("Any", kind)
        with torch.device("meta"):
            if issubclass(class_, diffusers.ModelMixin):
                return cast("torch.nn.Module", class_.from_config(dict(config)))
            return cast("torch.nn.Module", class_(_transformers_config(class_, config)))


class WeightsReader:
    """Loads components, and reports after each how much is loaded."""

    has_weights: ClassVar = True

    def __init__(self, report: Report | None = None, *, total_bytes: int = 0) -> None:
        self._report = report
        self._total_bytes = total_bytes
        self._loaded_bytes = 0
        if report is not None:
            report(0, total_bytes)

    def read(
        self, kind: object, place: Path, config: Mapping[str, object], **options: object
    ) -> torch.nn.Module:
        """Loads a component, and returns it if every tensor of it came from its files."""
        class_ = cast("Any", kind)
        if not issubclass(class_, diffusers.ModelMixin):
            # Diffusers has no such parameter, and reads the file itself.
            options["config"] = _transformers_config(class_, config)
        from_pretrained = cast("Callable[..., _Loaded]", class_.from_pretrained)
        module, problems = from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
        for problem in ("missing", "mismatched"):
            found = map(str, problems.get(f"{problem}_keys") or ())
            keys = [key for key in found if "position_ids" not in key]
            if keys:
                reason = f"{place.name} has {len(keys)} {problem} tensors, first {keys[0]}"
                raise LoadError(str(place.parent), reason)
        if self._report is not None:
            self._loaded_bytes += sum(tensor.nbytes for tensor in module.state_dict().values())
            self._report(min(self._loaded_bytes, self._total_bytes), self._total_bytes)
        return module


def _transformers_config(kind: Any, config: Mapping[str, object]) -> object:  # noqa: ANN401 - a class of an untyped library
    """Returns the configuration object of a class, from a file's content."""
    config_class = kind.config_class
    own = config.get(config_class.base_config_key or "", config)
    # A copy: transformers takes out what it understands.
    return config_class.from_dict(dict(cast("Mapping[str, object]", own)))
