"""What is known of a model before its weights are loaded, and what goes when it is unloaded."""

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
    folder = build_folder(tmp_path_factory.mktemp("outlined"))
    said = {"display_name": "Tiny", "defaults": {"num_inference_steps": 9}}
    (folder / "latentwire.json").write_text(json.dumps(said))
    return folder


def test_a_spec_knows_all_that_the_model_tells_and_holds_no_weights(folder: Path):
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


def test_a_spec_of_what_is_not_served_is_refused(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "unet/config.json", lambda config: config.update(class_embed_type="timestep"))
    with pytest.raises(LoadError, match="other conditions"):
        read_spec(source_of(copy))


def test_nothing_is_downloaded_for_a_spec():
    assert read_spec(source_of("nobody/nothing")) is None


@pytest.mark.parametrize("part", ["refiner", "vae"])
def test_a_part_that_is_not_on_this_machine_waits_for_loading(folder: Path, part: str):
    assert read_spec(source_of(folder, **{part: "nobody/nothing"})) is None


def test_a_checkpoint_of_unknown_configuration_has_no_spec(folder: Path):
    assert read_spec(source_of(folder / UNET)) is None
    assert read_spec(source_of(folder, refiner=str(folder / UNET))) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_is_known_before_and_is_the_size_after(folder: Path, dtype: str):
    source = source_of(folder, dtype=dtype)
    told: list[tuple[int, int]] = []
    model = load_model(source, report=lambda *progress: told.append(progress))
    assert model.dtype_name == dtype
    total = model_size(source).weights_bytes
    assert total == pytest.approx(model.memory_bytes, rel=0.02)
    assert [loaded for loaded, _ in told] == sorted(loaded for loaded, _ in told)
    assert {total for _, total in told} == {total}
    assert told[0] == (0, total)
    # Buffers such as the positions' numbers are in no file.
    assert told[-1][0] == pytest.approx(total, rel=0.02)


async def test_a_models_memory_goes_back_when_it_is_unloaded(folder: Path):
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
