"""The commands of clients/grpcurl/README.md, run by `buf curl`: no stubs, only reflection."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import shutil

import pytest
from PIL import Image

from tests.support.live import (
    CALL_TIMEOUT_S,
    GRPCURL_PAGE,
    LIVE_MARKS,
    blocks,
    call,
    commands,
    messages,
    serving,
)
from tests.support.tooling import run

pytestmark = LIVE_MARKS

PRINTED = [
    command for block in blocks(GRPCURL_PAGE, "sh") for command in commands(block, "grpcurl")
]
GENERATE = [
    "-plaintext", "-d", '{"prompt": "a red circle on a blue background", "seed": "42"}',
    "localhost:50051", "latentwire.v1.ImageGeneration/GenerateImage",
]  # fmt: skip


def image_in(events):
    (image,) = [event["image"] for event in events if "image" in event]
    data = base64.b64decode(image["data"])
    assert hashlib.sha256(data).digest() == base64.b64decode(image["sha256"])
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Without compilation, so that it starts at once: these tests are about the contract."""
    folder = tmp_path_factory.mktemp("live")
    with serving(folder, LATENTWIRE_DENOISER_BACKEND="eager") as live:
        yield live


@pytest.mark.parametrize("command", PRINTED, ids=shlex.join)
def test_every_printed_command_is_answered(live, command):
    if "describe" in command:
        pytest.skip("buf curl describes no messages")

    assert call(command, live)


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_both_versions_of_reflection_list_the_services(live, reflection):
    services = call(["localhost:50051", "list"], live, reflection=reflection).split()

    assert {"latentwire.v1.ImageGeneration", "grpc.health.v1.Health"} <= set(services)


def test_a_generation_streams_every_step_and_an_image_that_follows_its_prompt(live):
    events = messages(call(GENERATE, live))

    steps = [event["progress"].get("step", 0) for event in events if "progress" in event]
    assert "accepted" in events[0]
    assert "completed" in events[-1]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert steps == sorted(steps)
    assert {1, events[0]["accepted"]["effectiveRequest"]["numInferenceSteps"]} <= set(steps)
    generated = image_in(events)
    red, green, blue = generated.getpixel((generated.width // 2, generated.height // 2))
    assert red > 2 * max(green, blue)
    red, green, blue = generated.getpixel((4, 4))
    assert blue > 1.5 * max(red, green)


def test_the_server_is_healthy(live):
    check = ["-d", "{}", "localhost:50051", "grpc.health.v1.Health/Check"]

    assert messages(call(check, live)) == [{"status": "SERVING"}]


def test_an_invalid_request_is_refused_with_every_violation(live):
    invalid = '{"prompt": "", "width": 257, "numImages": -1}'
    command = ["-d", invalid, "localhost:50051", "latentwire.v1.ImageGeneration/GenerateImage"]

    with pytest.raises(AssertionError) as refused:
        call(command, live)

    for part in ("invalid_argument", "prompt", "width", "num_images"):
        assert part in str(refused.value)


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not installed")
@pytest.mark.parametrize("command", PRINTED, ids=shlex.join)
def test_grpcurl_itself_is_answered(live, command):
    arguments = [live.localized(word) for word in command]
    assert run(shutil.which("grpcurl"), *arguments, timeout_s=CALL_TIMEOUT_S)
