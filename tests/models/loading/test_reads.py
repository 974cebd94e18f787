"""Each configuration file of a model is opened once for its spec, its size and its load."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import latentwire_server
from latentwire_server.models.loading.model_files import ModelFiles
from tests.support.models.folders import source_of
from tests.support.models.tiny_models import build_folder
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from latentwire_server.models.model_options import ModelEntry

OURS = str(Path(latentwire_server.__file__).parent)
CONFIGURATIONS = (".json", ".txt")

# The files that the libraries open by themselves, because they take no parsed configuration:
# diffusers' `ModelMixin.from_pretrained` reads `config.json`, for the load.
BY_DIFFUSERS = {"unet/config.json": 1, "vae/config.json": 1}
# transformers' `CLIPTokenizer.from_pretrained` reads both files twice, for the spec and for the
# load: a loaded model may add words to its tokenizer, so it needs its own.
BY_TRANSFORMERS = {"tokenizer/tokenizer_config.json": 4, "tokenizer/tokenizer.json": 4}


class Opened:
    """Counts the configuration files that are opened below a folder, by us and by libraries."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.by_us: Counter[str] = Counter()
        self.by_libraries: Counter[str] = Counter()
        # A hook cannot be removed; between the tests it does nothing.
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if self.folder is None or event != "open" or not isinstance(args[0], str | Path):
            return
        path = Path(args[0])
        if path.suffix in CONFIGURATIONS and path.is_relative_to(self.folder):
            opened = self.by_us if _is_ours(sys._getframe(1)) else self.by_libraries
            opened[path.relative_to(self.folder).as_posix()] += 1

    @contextmanager
    def below(self, folder: Path) -> Iterator[Opened]:
        self.by_us, self.by_libraries = Counter(), Counter()
        self.folder = folder
        try:
            yield self
        finally:
            self.folder = None


def _is_ours(frame: FrameType | None) -> bool:
    """Returns whether our code opens a file, itself or by the standard library."""
    while frame is not None:
        name = frame.f_code.co_filename
        if "site-packages" in name or name.startswith(OURS):
            return name.startswith(OURS)
        frame = frame.f_back
    return False


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def journey(source: ModelEntry) -> None:
    files = ModelFiles.open(source)
    assert files.spec() is not None
    assert files.size().weights_bytes > 0
    assert files.load(report=lambda _loaded, _total: None).info.id == "tiny"


def test_a_folder_is_parsed_once(tmp_path: Path, opened: Opened) -> None:
    folder = build_folder(tmp_path)
    (folder / "latentwire.json").write_text(json.dumps({"display_name": "Tiny"}))
    projection = {"latent_rgb_factors": [[0.1, 0.2, 0.3]] * 4, "latent_rgb_bias": [0.0] * 3}
    (folder / "preview.json").write_text(json.dumps(projection))
    with opened.below(folder) as found:
        journey(source_of(folder))
    assert found.by_us == {
        "model_index.json": 1,
        "latentwire.json": 1,
        "preview.json": 1,
        "scheduler/scheduler_config.json": 1,
        "text_encoder/config.json": 1,
        "unet/config.json": 1,
        "vae/config.json": 1,
    }
    assert found.by_libraries == BY_DIFFUSERS | BY_TRANSFORMERS


def test_a_model_with_a_refiner_and_another_autoencoder_is_parsed_once(
    tmp_path: Path, opened: Opened
) -> None:
    base = build_xl_folder(tmp_path / "base")
    refiner = build_xl_folder(tmp_path / "refiner", is_refiner=True)
    vae = build_folder(tmp_path / "other") / "vae"
    with opened.below(tmp_path) as found:
        journey(source_of(base, refiner=str(refiner), vae=str(vae)))
    assert {"base/model_index.json", "refiner/model_index.json", "other/vae/config.json"} <= set(
        found.by_us
    )
    assert "base/tokenizer_2/tokenizer_config.json" in found.by_us, "it is compared"
    assert set(found.by_us.values()) == {1}


def test_a_file_opened_twice_is_counted_twice(tmp_path: Path, opened: Opened) -> None:
    folder = build_folder(tmp_path)
    with opened.below(folder) as found:
        for _ in range(2):
            ModelFiles.open(source_of(folder))
    assert found.by_us["model_index.json"] == 2
