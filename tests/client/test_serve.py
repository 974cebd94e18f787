"""``latentwire serve`` round two stand-ins: starting, watching over, stopping."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from latentwire._cli import main, start_up
from latentwire.v1 import image_generation_pb2 as pb
from tests.support.client.scripted_server import ScriptedServicer, model, serving
from tests.support.eventually import eventually, eventually_sync
from tests.support.time_limits import scaled

FAKE_SERVICES = Path(__file__).parents[1] / "support/client/fake_services"


@pytest.fixture
def serve(tmp_path):
    """Runs the command with stand-ins in the place of both services."""

    @contextmanager
    def run(*arguments: str, stderr: int = subprocess.PIPE, **settings: str):
        paths = [str(FAKE_SERVICES), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "FAKE_FOLDER": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(paths),
            **settings,
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "latentwire", "serve", "--bridge-port", "0", *arguments],
            env=environment,
            stderr=stderr,
            text=True,
        )
        with child:
            try:
                yield child
            finally:
                if child.poll() is None:
                    child.kill()

    return run


def wait_until_ready(child: subprocess.Popen) -> str:
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "openai.Image.create" in line:
            return "".join(lines)
    message = f"never ready: {''.join(lines)}"
    raise AssertionError(message)


def starts(folder: Path, name: str) -> list[dict]:
    path = folder / f"{name}-starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_to_try_and_stops_both_cleanly(serve, tmp_path, number):
    flags = ["--port", "40123", "--model", "some/model", "--config", "some.toml"]
    with serve(*flags, "--", "--max-queued", "3") as child:
        welcome = wait_until_ready(child)
        child.send_signal(number)
        assert child.wait(scaled(40)) == 0
    assert "grpcurl -plaintext" in welcome
    assert "curl -s http://127.0.0.1:" in welcome
    assert 'openai.api_base = "http://127.0.0.1:' in welcome
    assert (tmp_path / "server-stopped").exists()
    assert (tmp_path / "bridge-stopped").exists()
    (server,) = starts(tmp_path, "server")
    assert server["argv"][:4] == ["--port", "40123", "--model", "some/model"]
    assert server["argv"][4:8] == ["--config", "some.toml", "--max-queued", "3"]
    (bridge,) = starts(tmp_path, "bridge")
    assert bridge["argv"][:2] == ["--server", "127.0.0.1:40123"]
    assert bridge["argv"][-4:-2] == ["--config", "some.toml"]


def test_waiting_writes_a_line_per_phase_and_none_per_probe(serve):
    with serve("--port", "0", FAKE_UNREADY_PROBES="4") as child:
        said = wait_until_ready(child).splitlines()
    assert said[:4] == [
        "Starting the server, usually 5 to 20 s.",
        "Loading the model, usually seconds for each GB on disk, minutes for a download.",
        "",
        said[3],
    ]
    assert said[3].startswith("Latentwire is ready: gRPC on 127.0.0.1:40000, REST on http://")


def test_a_terminal_has_one_status_line_that_leaves_the_cursor_at_its_start(serve):
    leader, follower = pty.openpty()
    with serve("--port", "0", stderr=follower, FAKE_UNREADY_PROBES="3", TERM="xterm") as child:
        os.close(follower)
        said = b""
        while b"openai.Image.create" not in said:
            said += os.read(leader, 4096)
        child.kill()
    os.close(leader)
    before = said.decode().partition("\r\nLatentwire is ready")[0]
    assert "\n" not in before
    frames = before.split("\r")
    assert any("Starting the server: " in frame for frame in frames)
    assert any("Loading the model: " in frame and "(usually " in frame for frame in frames)
    assert frames[-1].endswith("\x1b[2K")


class LoadingServicer(ScriptedServicer):
    """A server that has not begun to load its default model when it is first asked."""

    def ListModels(self, request, context):
        default = model("a", is_default=True)
        asked_before = self.num_unary_calls > 0
        default.state = pb.MODEL_STATE_LOADING if asked_before else pb.MODEL_STATE_UNLOADED
        self.num_unary_calls += 1
        return pb.ListModelsResponse(models=[default])

    def LoadModel(self, request, context):
        assert request.name == "models/a"
        loading = pb.ModelLoading(loaded_bytes=3 << 20, total_bytes=3 << 20)
        yield pb.LoadModelResponse(model_loading=loading)
        yield pb.LoadModelResponse(model=model("a"))


async def test_the_load_of_the_default_model_is_followed(monkeypatch, capsys):
    monkeypatch.setattr(start_up, "_PROGRESS_S", 0.0)
    said = []

    def has_said(text: str) -> bool:
        said.append(capsys.readouterr().err)
        return text in "".join(said)

    with serving(LoadingServicer()) as address:
        async with start_up.StartUpDisplay() as display:
            display.begin("Starting the server", usually="some seconds")
            await display.follow_load(address)
            await eventually(lambda: has_said("3 of 3 MiB, warming up"))
    assert "\nLoading models/a, usually " in "".join(said)


def test_a_server_that_died_is_started_again_on_its_port(serve, tmp_path):
    with serve("--port", "0") as child:
        wait_until_ready(child)
        (server,) = starts(tmp_path, "server")
        os.kill(server["pid"], signal.SIGKILL)
        eventually_sync(lambda: len(starts(tmp_path, "server")) == 2)
        assert len(starts(tmp_path, "bridge")) == 1
        child.terminate()
        rest = child.stderr.read()
        assert child.wait(scaled(40)) == 0
    assert "the server ended with status -9; restarting it in 1 s" in rest
    assert starts(tmp_path, "server")[1]["argv"][-2:] == ["--port", "40000"]


def test_a_start_up_error_ends_with_its_line_and_status_2(serve, tmp_path):
    with serve("--model", "missing") as child:
        assert child.stderr.read().splitlines()[1:] == ["latentwire-server: no such model"]
        assert child.wait(scaled(40)) == 2
    assert starts(tmp_path, "bridge") == []


def test_a_server_that_never_came_up_is_not_started_again(serve):
    with serve("--model", "broken") as child:
        assert child.wait(scaled(40)) == 1


def test_no_child_outlives_the_command(serve, tmp_path):
    with serve() as child:
        wait_until_ready(child)
        children = [starts(tmp_path, name)[0]["pid"] for name in ("server", "bridge")]
        child.kill()
        child.wait(scaled(40))
        eventually_sync(lambda: not any(map(is_alive, children)))


def test_without_the_services_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["serve"]) == 2
    assert "pip install 'latentwire[server,bridge]'" in capsys.readouterr().err
