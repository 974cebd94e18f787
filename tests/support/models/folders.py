"""Loads, measures and edits model folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.hub import Fetch
from latentwire_server.models.loading import model_files
from latentwire_server.models.loading.model_files import ModelFiles
from latentwire_server.models.model_options import ModelEntry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latentwire_server.models.architectures.unet_model import UnetModel
    from latentwire_server.models.files.hub import Report
    from latentwire_server.models.info import ModelSize
    from latentwire_server.models.protocol import ModelSpec

UNET = "unet/diffusion_pytorch_model.safetensors"


def source_of(path: Path | str, **options: Any) -> ModelEntry:
    given = {"id": "tiny", "device": "cpu", "dtype": "float32", **options}
    return ModelEntry.model_validate({"source": str(path), **given})


def load_model(
    entry: ModelEntry, *, report: Report | None = None, denoiser_cache: Path | None = None
) -> UnetModel:
    return ModelFiles.open(entry).load(report=report, denoiser_cache=denoiser_cache)


def model_size(entry: ModelEntry, *, report: Report | None = None) -> ModelSize:
    return ModelFiles.open(entry, report=report).size()


def read_spec(entry: ModelEntry, *, fetch: Fetch = Fetch.NOTHING) -> ModelSpec | None:
    return model_files.read_spec(entry, fetch=fetch)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(path: Path | str, *, because: str, **options: Any) -> None:
    with pytest.raises(LoadError, match=because) as raised:
        load_model(source_of(path, **options))
    assert len(str(raised.value).splitlines()) == 1
    assert "model" in str(raised.value)
