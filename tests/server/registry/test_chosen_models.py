"""From a listed model to a loaded one, and the errors on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.app import build
from latentwire_server.models.loading.model_files import ModelFiles
from latentwire_server.registry.chosen_models import chosen_models
from latentwire_server.registry.loadable_model import ModelLoadError
from latentwire_server.settings.settings import Settings
from tests.support.models.folders import edit
from tests.support.models.lora_files import write_diffusers
from tests.support.models.tiny_models import build_folder
from tests.support.server.serving import Serving, events_of, kind, request

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.model_options import ModelEntry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("chosen"))


def listed(folder: Path, **more: object) -> dict[str, object]:
    return {"source": str(folder), "dtype": "float32", "denoiser_backend": "eager", **more}


def test_library_errors_are_shown_only_to_the_operator(tmp_path: Path):
    broken = build_folder(tmp_path / "broken")
    edit(broken / "unet/config.json", lambda config: config.update(block_out_channels="secret"))
    (model,) = chosen_models(Settings.load({"models": [listed(broken)]}))
    for function in (model.spec, lambda: model.load(lambda _loaded, _total: None)):
        with pytest.raises(ModelLoadError) as caught:
            function()
        assert caught.value.reason == "unet does not load"
        assert str(broken) in str(caught.value)


def test_measuring_and_loading_open_the_files_once_and_a_later_load_reopens_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = []
    open_files = ModelFiles.open

    def counted(entry: ModelEntry, **options: Any) -> ModelFiles:
        opened.append(entry.id)
        return open_files(entry, **options)

    monkeypatch.setattr(ModelFiles, "open", counted)
    (model,) = chosen_models(Settings.load({"models": [listed(folder, id="a")]}))
    for number in (1, 2):
        size = model.measure(lambda _loaded, _total: None)
        loaded = model.load(lambda _loaded, _total: None)
        assert loaded.memory_bytes == pytest.approx(size.weights_bytes, rel=0.02)
        assert len(opened) == number


async def test_adapters_added_later_are_found_when_the_model_is_reloaded(
    folder: Path, tmp_path: Path
):
    given = {"port": 0, "max_rows": 4, "device": "cpu", "lora_folder": tmp_path}
    settings = await asyncio.to_thread(Settings.load, given | {"models": [listed(folder, id="a")]})
    app = await build(settings, await asyncio.to_thread(chosen_models, settings))
    await app.start()
    try:
        await app.load()
        async with grpc.aio.insecure_channel(app.address) as channel:
            server = Serving(app=app, model=None, channel=channel)
            parts = app._catalogue.default_model._parts
            await asyncio.to_thread(write_diffusers, tmp_path / "late.safetensors", parts, seed=1)
            del parts
            wanted = request("a red circle", num_inference_steps=1, loras=[pb.Lora(id="late")])
            with pytest.raises(grpc.RpcError) as caught:
                await events_of(server.stub.GenerateImage(wanted))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            await server.admin.UnloadModel(pb.UnloadModelRequest(name="a"))
            loaded = await events_of(server.admin.LoadModel(pb.LoadModelRequest(name="a")))
            assert list(loaded[-1].model.loras) == ["late"]
            events = await events_of(server.stub.GenerateImage(wanted))
            assert kind(events[-1]) == "completed"
    finally:
        await app.stop(grace_s=0)


async def test_a_listed_folder_is_described_loaded_on_demand_and_generates(folder: Path):
    models = [listed(folder, id="first"), listed(folder, id="second", aliases=["other"])]
    given = {"port": 0, "max_rows": 4, "device": "cpu", "models": models}
    settings = await asyncio.to_thread(Settings.load, given)
    app = await build(settings, await asyncio.to_thread(chosen_models, settings))
    await app.start()
    try:
        await app.load()
        async with grpc.aio.insecure_channel(app.address) as channel:
            server = Serving(app=app, model=None, channel=channel)
            first, second = (await server.stub.ListModels(pb.ListModelsRequest())).models
            assert (first.state, second.state) == (pb.MODEL_STATE_READY, pb.MODEL_STATE_UNLOADED)
            assert (second.limits, second.defaults) == (first.limits, first.defaults)
            assert second.revision == first.revision
            sent = request("a red circle", model="other", num_inference_steps=2)
            events = await events_of(server.stub.GenerateImage(sent))
            assert [kind(events[0]), kind(events[-1])] == ["accepted", "completed"]
            loading = [one.model_loading for one in events if kind(one) == "model_loading"]
            assert loading
            assert {one.model for one in loading} == {"models/second"}
    finally:
        await asyncio.shield(app.stop(grace_s=0))
