"""Model specs, which need no weights, and the memory that unloading frees."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.engine import Engine
from latentwire_server.engine.events import Completed
from latentwire_server.engine.request import GenerationRequest
from latentwire_server.engine.settings import EngineSettings
from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import SchedulerChoice
from tests.support.models.folders import UNET, edit, load_model, model_size, read_spec, source_of
from tests.support.models.tiny_models import build_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_folder(tmp_path_factory.mktemp("spec"))
    settings = {"display_name": "Tiny", "defaults": {"num_inference_steps": 9}}
    (folder / "latentwire.json").write_text(json.dumps(settings))
    return folder


def test_a_spec_has_the_models_info_and_holds_no_weights(folder: Path):
    source = source_of(folder, aliases=("other",))
    spec, model = read_spec(source), load_model(source)
    assert spec is not None
    assert spec.info == model.info
    assert spec.latent_shape(width=64, height=32) == model.latent_shape(width=64, height=32)
    prompt = "red " * 90
    assert spec.dropped_text(prompt) == model.dropped_text(prompt) != ""
    made = spec.create_scheduler(spec.info.defaults.scheduler, num_inference_steps=4)
    assert made.num_evaluations == 5
    assert all(one.is_meta for one in spec._parts.unet.parameters())


def test_the_spec_of_an_unsupported_model_is_refused(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "unet/config.json", lambda config: config.update(class_embed_type="timestep"))
    with pytest.raises(LoadError, match="other conditions"):
        read_spec(source_of(copy))


def test_nothing_is_downloaded_for_a_spec():
    assert read_spec(source_of("nobody/nothing")) is None


@pytest.mark.parametrize("part", ["refiner", "vae"])
def test_there_is_no_spec_while_a_part_is_not_downloaded(folder: Path, part: str):
    assert read_spec(source_of(folder, **{part: "nobody/nothing"})) is None


def test_a_checkpoint_of_unknown_configuration_has_no_spec(folder: Path):
    assert read_spec(source_of(folder / UNET)) is None
    assert read_spec(source_of(folder, refiner=str(folder / UNET))) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_expected_size_is_the_size_after_loading(folder: Path, dtype: str):
    source = source_of(folder, dtype=dtype)
    reports: list[tuple[int, int]] = []
    model = load_model(source, report=lambda *progress: reports.append(progress))
    assert model.dtype_name == dtype
    total = model_size(source).weights_bytes
    assert total == pytest.approx(model.memory_bytes, rel=0.02)
    assert [loaded for loaded, _ in reports] == sorted(loaded for loaded, _ in reports)
    assert {total for _, total in reports} == {total}
    assert reports[0] == (0, total)
    # Buffers such as position ids are in no file.
    assert reports[-1][0] == pytest.approx(total, rel=0.02)


async def test_unloading_a_model_frees_its_memory(folder: Path):
    model = load_model(source_of(folder, denoiser_backend="eager"))
    engine = Engine(EngineSettings(max_rows=4))
    await engine.start()
    try:
        engine.models.warm_up(model)
        engine.models.add(model)
        request = GenerationRequest(
            generation_id="one",
            owner="",
            model="tiny",
            prompt="a red circle",
            width=64,
            height=64,
            seed=1,
            num_inference_steps=2,
            guidance_scale=3.0,
            scheduler=SchedulerChoice(id="euler"),
        )
        async with engine.submit(request, spec=model) as stream:
            events = [event async for event in stream]
        assert isinstance(events[-1], Completed)
        del stream
        weights = [weakref.ref(one) for one in model._parts.unet.parameters()]
        whole = weakref.ref(model)
        del model
        assert whole() is not None
        removal = engine.models.remove("tiny")
        removal.result(timeout=10)
        gc.collect()
        assert whole() is None
        assert [one() for one in weights if one() is not None] == []
        encoder = engine._device_loop._encoder
        assert (len(encoder._recent), encoder._num_bytes) == (0, 0)
    finally:
        await engine.aclose()
