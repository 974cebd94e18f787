"""The clients and the command line against the real server, round a FakeModel."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys

import numpy as np
import pytest
from PIL import Image as PillowImage

import latentwire
from latentwire._cli import main
from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.registry.loadable_model import ModelLoadError
from tests.support.client.both_clients import InThreads, OnLoop
from tests.support.fakes import FakeModel, expected_pixels
from tests.support.server.serving import ServedModel, serving, serving_models
from tests.support.time_limits import scaled

SMALL = {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 5}


@pytest.fixture
async def server():
    async with serving() as running:
        yield running


@pytest.fixture
async def client(server):
    async with latentwire.AsyncClient(server.address) as client:
        yield client


@pytest.fixture
def cli_of(server, tmp_path, monkeypatch, capsys):
    """Runs a command on a thread of this process; returns its exit code and what it complains."""
    monkeypatch.chdir(tmp_path)

    async def run(*arguments: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, [*arguments, "--server", server.address])
        return code, capsys.readouterr().err

    return run


async def command(server, *arguments: str, cwd):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "latentwire", *arguments, "--server", server.address),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_picture_comes_back(client):
    (image,) = await client.generate("a red circle", **SMALL)
    wanted = expected_pixels("a red circle", seed=5, guidance_scale=2.0)
    difference = np.abs(np.asarray(image.pil()).astype(int) - wanted)
    assert difference.max() <= 1
    assert image.seed == 5


async def test_the_effective_request_draws_the_same_again(client):
    events = [event async for event in client.stream("a red circle", **SMALL, num_images=2)]
    accepted, first = events[0], [event for event in events if isinstance(event, latentwire.Image)]
    second = await client.generate(accepted.effective_request)
    assert [image.data for image in first] == [image.data for image in second]
    assert isinstance(events[-1], latentwire.Completed)


def file_of(colour: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    PillowImage.new(mode, (64, 64), colour).save(out, "PNG")
    return out.getvalue()


async def test_the_echo_draws_the_same_once_the_files_are_put_back(client):
    files = {"image": file_of("navy"), "mask": file_of("white", "L")}
    events = [
        event
        async for event in client.stream(
            "a red circle", **SMALL | {"num_inference_steps": 8}, **files, strength=0.5
        )
    ]
    request = events[0].effective_request
    assert (request.inpainting.strength, request.width) == (0.5, 64)
    (again,) = await client.generate(request, **files)
    (first,) = [event for event in events if isinstance(event, latentwire.Image)]
    assert first.data == again.data


@pytest.mark.parametrize(
    "options",
    [{"strength": 0.5}, {"mask": b"x"}, {"mask_inverted": True, "image": b"x"}],
    ids=str,
)
async def test_what_belongs_to_a_picture_needs_one(client, options):
    with pytest.raises(TypeError, match="need"):
        await client.generate("a red circle", **options)


@pytest.fixture(params=["threads", "asyncio"])
async def fixing_client(request):
    """Either client of a model that has the high-resolution fix, at half strength by default."""
    async with serving(FakeModel(high_resolution_fix=0.5)) as server:
        if request.param == "threads":
            with latentwire.Client(server.address) as client:
                yield InThreads(client)
        else:
            async with latentwire.AsyncClient(server.address) as client:
                yield OnLoop(client)


@pytest.mark.parametrize(
    ("asked", "side", "told"),
    [
        (None, 128, pb.HighResolutionFix(strength=0.5, width=64, height=64)),
        (True, 80, pb.HighResolutionFix(strength=0.5, width=64, height=64)),
        (0.75, 80, pb.HighResolutionFix(strength=0.75, width=64, height=64)),
        (1, 80, pb.HighResolutionFix(strength=1, width=64, height=64)),
        (False, 128, pb.HighResolutionFix(disabled=True)),
    ],
)
async def test_the_high_resolution_fix_is_asked_for_and_declined(fixing_client, asked, side, told):
    options = SMALL | {"width": side, "height": side, "validate_only": True}
    (accepted,) = [
        event async for event in fixing_client.events("p", **options, high_resolution_fix=asked)
    ]
    assert accepted.effective_request.high_resolution_fix == told


async def test_what_is_no_strength_of_the_high_resolution_fix_is_refused(fixing_client):
    with pytest.raises(TypeError, match="high_resolution_fix"):
        await fixing_client.generate("p", **SMALL, high_resolution_fix="on")
    with pytest.raises(latentwire.InvalidRequestError, match="high_resolution_fix"):
        await fixing_client.generate("p", **SMALL, high_resolution_fix=0.0)
    (model,) = await fixing_client.models()
    assert (model.defaults.high_resolution_fix, model.defaults.high_noise_frac) == (0.5, None)


async def test_the_command_starts_from_files(server, tmp_path):
    (tmp_path / "in.png").write_bytes(file_of("navy"))
    (tmp_path / "mask.png").write_bytes(file_of("black", "L"))
    flags = "--image in.png --mask mask.png --mask-inverted --strength 0.5 -o out.png"
    drawing = await command(server, "generate", "a red circle", *flags.split(), cwd=tmp_path)
    _, errors = await drawing.communicate()
    assert drawing.returncode == 0, errors
    with PillowImage.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (64, 64)

    missing = await command(server, "generate", "p", "--image", "nowhere.png", cwd=tmp_path)
    _, errors = await missing.communicate()
    assert missing.returncode == 2
    assert b"nowhere.png: No such file" in errors


async def test_what_was_drawn_from_files_wants_them_again(client, cli_of, tmp_path):
    files = {"image": file_of("navy"), "mask": file_of("white", "L")}
    for name, file in files.items():
        (tmp_path / f"{name}.png").write_bytes(file)
    options = SMALL | {"num_inference_steps": 8, "strength": 0.5}
    (edited,) = await client.generate("a red circle", **options, image=files["image"])
    (masked,) = await client.generate("a red circle", **options, **files)
    (tmp_path / "edited.png").write_bytes(edited.data)
    (tmp_path / "masked.png").write_bytes(masked.data)

    code, complaints = await cli_of("generate", "--like", "edited.png")
    said = "edited.png: generated from an image, which it does not contain; add --image FILE"
    assert (code, complaints) == (2, f"latentwire: {said}\n")
    code, complaints = await cli_of("generate", "--like", "masked.png")
    assert (code, complaints.count("--image FILE and --mask FILE")) == (2, 1)
    code, complaints = await cli_of("generate", "--like", "masked.png", "--image", "image.png")
    assert (code, complaints.endswith("add --mask FILE\n")) == (2, True)
    given = ("--image", "image.png", "--mask", "mask.png", "-o", "again.png", "-q")
    assert await cli_of("generate", "--like", "masked.png", *given) == (0, "")
    assert (tmp_path / "again.png").read_bytes() == masked.data


async def test_the_file_itself_draws_the_same_again(server, client, tmp_path):
    (image,) = await client.generate("a red circle", **SMALL, scheduler="euler", guidance_scale=3)
    (tmp_path / "first.png").write_bytes(image.data)
    process = await command(
        server, "generate", "--like", "first.png", "-o", "second.png", cwd=tmp_path
    )
    _, complaints = await process.communicate()
    assert process.returncode == 0, complaints
    assert (tmp_path / "second.png").read_bytes() == image.data


async def test_steps_and_previews_stream_out(client):
    events = [event async for event in client.stream("a", **SMALL, preview_interval_steps=2)]
    steps = [event.step for event in events if isinstance(event, latentwire.Progress)]
    assert steps[-1] == 4
    previews = [event for event in events if isinstance(event, latentwire.Preview)]
    assert previews
    with PillowImage.open(io.BytesIO(previews[0].data)) as picture:
        assert picture.size == (64, 64)


async def test_closing_the_stream_ends_the_generation(server, client):
    server.model.hold()
    async with client.stream("a", **SMALL) as events:
        name = (await anext(events)).generation
    await _state_becomes(client, name, "cancelled")
    server.model.let_go()


async def test_cancel_by_name_ends_the_stream_with_its_own_error(server, client):
    server.model.hold()
    events = client.stream("a", **SMALL)
    name = (await anext(events)).generation
    assert [generation.name for generation in await client.generations()] == [name]
    await client.cancel(name)
    server.model.let_go()
    with pytest.raises(latentwire.GenerationCancelled):
        _ = [event async for event in events]
    assert (await client.generation(name)).state == "cancelled"


async def test_all_violations_come_at_once(client):
    with pytest.raises(latentwire.InvalidRequestError) as raised:
        await client.generate("", width=63, num_inference_steps=100_000)
    fields = {violation.field for violation in raised.value.violations}
    assert fields == {"prompt", "width", "num_inference_steps"}
    assert all(violation.reason for violation in raised.value.violations)


async def test_what_is_not_there_is_not_found(client):
    for call in (client.model("none"), client.generation("none"), client.cancel("none")):
        with pytest.raises(latentwire.NotFoundError):
            await call


async def test_the_server_tells_about_itself(client):
    await client.wait_ready(10)
    await client.wait_ready(10, model="fake")
    (model,) = await client.models()
    assert (model.name, model.is_default, model.state) == ("models/fake", True, "ready")
    info = await client.server_info()
    assert info.queued_count == info.running_count == 0
    assert not info.draining


async def test_a_model_is_loaded_and_unloaded():
    served = ServedModel(id="b", size_bytes=100)
    async with (
        serving_models(ServedModel(id="a", preload=True), served) as server,
        latentwire.AsyncClient(server.address) as client,
    ):
        told = []
        model = await client.load_model("b", on_progress=lambda *progress: told.append(progress))
        assert (model.name, model.state) == ("models/b", "ready")
        assert told[-1][1] == 100 or told == [(0, 0)]
        assert (await client.unload_model("b")).state == "unloaded"
        events = [event async for event in client.stream("a", model="b", **SMALL)]
        assert any(isinstance(event, latentwire.ModelLoading) for event in events)
        assert isinstance(events[-1], latentwire.Completed)


async def test_of_a_model_that_failed_the_reason_is_shown_and_nothing_made_up(tmp_path):
    error = ModelLoadError("model 'b': broken", reason="its weights are broken")
    served = ServedModel(id="b", preload=True, is_known=False, error=error)
    async with serving_models(ServedModel(id="a", preload=True), served) as server:
        pages = []
        for arguments in (["models", "b"], ["models"]):
            process = await command(server, *arguments, cwd=tmp_path)
            out, complaints = await process.communicate()
            assert process.returncode == 0, complaints
            pages.append(out.decode().splitlines())
    page, listed = pages
    assert [line.split(maxsplit=1) for line in page if not line.startswith("display")] == [
        ["name", "models/b"],
        ["aliases", "-"],
        ["default", "no"],
        ["state", "failed"],
        ["reason", "its weights are broken"],
    ]
    assert listed[-1].split() == ["b", "failed", "-", "-"]


async def test_wait_ready_waits_for_the_model():
    async with serving(loads=False) as server, latentwire.AsyncClient(server.address) as client:
        waiting = asyncio.create_task(client.wait_ready(20))
        with pytest.raises(latentwire.UnavailableError):
            await client.wait_ready(0.1)
        assert not waiting.done()
        await server.app.load()
        await waiting


async def test_the_sync_client_works_too(server):
    def draw() -> list[latentwire.Image]:
        with latentwire.Client(server.address) as client:
            return client.generate("a red circle", **SMALL)

    (image,) = await asyncio.to_thread(draw)
    assert (image.width, image.height) == (64, 64)


async def test_ctrl_c_ends_the_generation(server, client, tmp_path):
    server.model.hold()
    process = await command(server, "generate", "a", "--json", cwd=tmp_path)
    name = json.loads(await process.stdout.readline())["generation"]
    process.send_signal(signal.SIGINT)
    out, _ = await process.communicate()
    server.model.let_go()
    assert process.returncode == 130
    last = json.loads(out.splitlines()[-1])
    assert last == {"event": "interrupted", "generation": name, "is_cancelled": True}
    await _state_becomes(client, name, "cancelled")


async def _state_becomes(client, name, state):
    async with asyncio.timeout(scaled(20)):
        while (await client.generation(name)).state != state:  # noqa: ASYNC110 - a remote state
            await asyncio.sleep(0.01)
