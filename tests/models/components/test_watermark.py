"""The invisible watermark, against diffusers' own pipelines with their watermarker.

With the package if it is installed, and always with an encoder of our own in its place, through
diffusers' own class.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl import watermark

from latentwire_server.engine.device.finishing import pixels_of
from latentwire_server.models.components.watermark import LEAST_SIDE, load_watermark
from latentwire_server.registry.chosen_models import chosen_models
from latentwire_server.settings.files import SettingsError
from latentwire_server.settings.settings import Settings
from tests.support.engine.driving import pixels_of_file
from tests.support.models.folders import load_model, read_spec, refused, source_of
from tests.support.models.images import coloured_blobs, random_mask
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    largest_difference,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.model_options import ModelEntry

SIDE = LEAST_SIDE
CASES = [
    Case(name="words", width=SIDE, height=SIDE, num_images=2, num_inference_steps=2),
    Case(
        name="image",
        width=SIDE,
        height=SIDE,
        image=coloured_blobs(1, width=SIDE, height=SIDE),
        num_inference_steps=2,
    ),
    Case(
        name="mask",
        width=SIDE,
        height=SIDE,
        image=coloured_blobs(2, width=SIDE, height=SIDE),
        mask=random_mask(2, width=SIDE, height=SIDE),
        num_inference_steps=2,
    ),
]


class FakeEncoder:
    """Has the interface of the package's encoder, and writes the bits into stripes."""

    def set_watermark(self, kind: str, content: list[int]) -> None:
        assert kind == "bits"
        self._bits = np.array(content, np.float32)

    def encode(self, image: np.ndarray, method: str) -> np.ndarray:
        """Takes (height, width, 3) float32 of 0 to 255, blue first."""
        assert method == "dwtDct"
        stripes = np.resize(self._bits, image.shape[1]) * 40 - 20
        changed = image.copy()
        changed[..., 0] += stripes[None]
        return changed


@pytest.fixture(params=["an encoder of ours", "invisible-watermark"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "invisible-watermark":
        pytest.importorskip("imwatermark")
    else:
        monkeypatch.setattr(watermark, "WatermarkEncoder", FakeEncoder, raising=False)
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_xl_folder(tmp_path_factory.mktemp("xl"))


def marking(folder: Path, **options: Any) -> ModelEntry:
    size = {"width": SIDE, "height": SIDE}
    return source_of(folder, defaults=size, watermark=True, **options)


def test_images_match_the_pipelines_watermarked_images(folder: Path, encoder: str) -> None:
    oracle, plain = (Oracle(folder, pipelines=STABLE_DIFFUSION_XL) for _ in range(2))
    make_pipeline = oracle.pipeline_with_scheduler

    def with_watermark(case: Case) -> Any:
        pipeline = make_pipeline(case)
        pipeline.watermark = watermark.StableDiffusionXLWatermarker()
        return pipeline

    oracle.pipeline_with_scheduler = with_watermark
    generated = EngineImages(model=load_model(marking(folder))).crowd(*CASES)
    for case in CASES:
        for file, expected in zip(generated[case.name], oracle.generate(case), strict=True):
            # Rounding may flip a few blocks, which are then far off.
            is_off = np.abs(pixels_of_file(file) - expected) > TOLERANCE
            assert is_off.mean() < 1e-4, case.name
        assert largest_difference(generated[case.name], plain.generate(case)) > 8, case.name


def test_the_watermark_can_be_read_back_from_eight_bit_pixels() -> None:
    imwatermark = pytest.importorskip("imwatermark")
    colours = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    (soft,) = torch.nn.functional.interpolate(colours, size=(512, 512), mode="bicubic")
    reader = imwatermark.WatermarkDecoder("bits", len(watermark.WATERMARK_BITS))

    def share_read(image: torch.Tensor) -> float:
        # In float32, as it was written: in uint8 the chroma channels have another offset.
        blue_first = np.ascontiguousarray(pixels_of(image)[..., ::-1], np.float32)
        return float(np.mean(reader.decode(blue_first) == np.array(watermark.WATERMARK_BITS)))

    # Without a watermark half of the bits match by chance.
    assert share_read(soft) < 0.65
    assert share_read(load_watermark("tiny").applied(soft)) > 0.75


def test_a_watermarked_model_reports_it_and_refuses_sizes_too_small_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "WatermarkEncoder", FakeEncoder, raising=False)
    source = marking(folder)
    model, spec = load_model(source), read_spec(source)
    assert "watermark" in model.info.capabilities
    assert model.info.limits.min_side == LEAST_SIDE
    assert spec is not None
    assert spec.info == model.info
    assert load_model(source_of(folder)).watermark is None
    refused(folder, watermark=True, because="256 at least; its default size: 64x64")


def test_a_missing_package_is_reported_with_the_install_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(watermark, "WatermarkEncoder", raising=False)
    needed = r"watermark=true: needed: .*pip install 'latentwire\[watermark\]'"
    refused(folder, watermark=True, defaults={"width": SIDE, "height": SIDE}, because=needed)


def test_a_missing_package_is_reported_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(SettingsError, match=r"^watermark=true: needed: .*latentwire\[watermark\]"):
        chosen_models(Settings.load({"watermark": True}))
    listed = '[[models]]\nsource = "embedded"\n[[models]]\nid = "marked"\nsource = "embedded"\n'
    (tmp_path / "latentwire.toml").write_text(f"{listed}watermark = true\n")
    with pytest.raises(SettingsError, match=r"^models\[1\].watermark=true: needed: "):
        chosen_models(Settings.load({}))
    present = ModuleType("imwatermark")
    present.__spec__ = ModuleSpec("imwatermark", None)
    monkeypatch.setitem(sys.modules, "imwatermark", present)
    assert [one.id for one in chosen_models(Settings.load({}))] == ["embedded", "marked"]
