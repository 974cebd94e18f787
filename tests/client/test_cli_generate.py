"""``latentwire generate``: the files it writes, what it tells meanwhile, how it is stopped."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.client.drawing import draw, picture
from tests.support.client.scripted_server import (
    GENERATION,
    Hang,
    accepted,
    completed,
    image,
    numbered,
    progress,
)
from tests.support.eventually import eventually_sync
from tests.support.time_limits import scaled


def test_generate_writes_the_image_and_few_plain_lines(process, servicer, tmp_path):
    result = process("generate", "a red fox", "-o", "fox.png", "--steps", "2", "--seed", "0")
    assert result.returncode == 0
    assert (tmp_path / "fox.png").read_bytes() == picture()
    lines = result.stderr.decode().splitlines()
    assert "queued, 3 ahead" in lines
    assert "denoising 2/2" in lines
    assert "fox.png: 8x8, seed 7" in lines
    assert "".join(lines).isprintable()
    assert result.stdout == b""
    (request,) = servicer.requests
    assert request.num_inference_steps == 2
    assert request.HasField("seed")
    assert servicer.metadata[0]["authorization"] == "Bearer secret"


def test_every_drawing_flag_reaches_the_server(cli, servicer):
    flags = (
        "generate p --model m --negative-prompt n --width 16 --height 24 --num-images 2 --seed 5"
        " --num-inference-steps 3 --guidance-scale 0 --scheduler dpmpp-2m --sigmas karras"
        " --clip-skip 0 --high-noise-frac 0.75 --high-resolution-fix"
        " --format webp --quality 80 --metadata-omitted --max-data-bytes 65536"
        " --progress-interval-steps 2 --preview-interval-steps 3 --preview-method full-vae"
        " --preview-max-side 64 --priority -5 --user me --label a=b --label c=d=e"
        " --lora style:-0.5 --lora my-cat"
    )
    assert cli(*flags.split()).returncode == 0
    wanted = pb.GenerateImageRequest(
        prompt="p",
        model="m",
        negative_prompt="n",
        width=16,
        height=24,
        num_images=2,
        seed=5,
        num_inference_steps=3,
        guidance_scale=0,
        scheduler=pb.Scheduler(id="dpmpp-2m", sigmas="karras"),
        clip_skip=0,
        high_noise_frac=0.75,
        high_resolution_fix=pb.HighResolutionFix(),
        loras=[pb.Lora(id="style", scale=-0.5), pb.Lora(id="my-cat", scale=1)],
        output=pb.Output(
            format=pb.IMAGE_FORMAT_WEBP, quality=80, metadata_omitted=True, max_data_bytes=65536
        ),
        events=pb.Events(
            progress_interval_steps=2,
            preview_interval_steps=3,
            preview_method=pb.PREVIEW_METHOD_FULL_VAE,
            preview_max_side=64,
        ),
        priority=-5,
        user="me",
        labels={"a": "b", "c": "d=e"},
    )
    assert servicer.requests == [wanted]


def test_the_high_resolution_fix_can_be_declined(cli, servicer):
    assert cli("generate", "p", "--no-high-resolution-fix").returncode == 0
    assert cli("generate", "p").returncode == 0
    declined, unsaid = servicer.requests
    assert declined.high_resolution_fix == pb.HighResolutionFix(disabled=True)
    assert not unsaid.HasField("high_resolution_fix")


def test_several_images_are_numbered(cli, tmp_path):
    assert cli("generate", "p", "-n", "3", "-o", "cat.png").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cat-0.png",
        "cat-1.png",
        "cat-2.png",
    ]


def test_without_an_output_the_seed_names_the_file(cli, tmp_path):
    assert cli("generate", "p", "--format", "webp").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["image-7.webp"]


def test_the_suffix_chooses_the_format(cli, servicer, tmp_path):
    assert cli("generate", "p", "-o", "fox.JPG").returncode == 0
    assert servicer.requests[0].output.format == pb.IMAGE_FORMAT_JPEG
    assert (tmp_path / "fox.JPG").read_bytes() == picture("jpeg")


def test_a_dash_writes_the_image_to_standard_output(process):
    result = process("generate", "p", "-o", "-")
    assert result.returncode == 0
    assert result.stdout == picture()


def test_json_is_one_line_per_event(cli, tmp_path):
    result = cli("generate", "p", "--json", "--preview", "-o", "fox.png")
    assert result.returncode == 0
    assert result.stderr == ""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        "accepted",
        "queued",
        "progress",
        "preview",
        "progress",
        "image",
        "completed",
    ]
    assert events[0]["seeds"] == [7]
    assert events[1]["estimated_wait_s"] is None
    assert events[5]["path"] == "fox.png"
    assert "data" not in events[3]
    assert (tmp_path / "fox.png").exists()


def test_quiet_says_nothing(cli):
    result = cli("generate", "p", "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_ctrl_c_cancels_on_the_server_and_says_so(environment, servicer, tmp_path):
    servicer.script = numbered(accepted(), progress(1, 9), Hang())
    with subprocess.Popen(
        [sys.executable, "-m", "latentwire", "generate", "p"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        for line in child.stderr:
            if "denoising" in line:
                break
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(scaled(40)) == 130
    assert rest.splitlines() == [f"interrupted; {GENERATION} is cancelled on the server"]
    assert servicer.cancelled_names == [GENERATION]
    eventually_sync(servicer.call_ended.is_set)
    assert list(tmp_path.iterdir()) == []


def test_a_withheld_image_is_told_and_not_written(cli, servicer, tmp_path):
    withheld = image(b"", index=1, finish_reason=pb.FINISH_REASON_FILTERED, sha256=b"")
    servicer.script = numbered(accepted(), image(picture()), withheld, completed(2))
    result = cli("generate", "p", "-n", "2")
    assert result.returncode == 0
    assert "image 1 was withheld by the server's safety filter, seed 8" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["image-7.png"]


def test_a_command_whose_every_image_is_withheld_says_so_by_its_exit_code(cli, servicer, tmp_path):
    withheld = image(b"", finish_reason=pb.FINISH_REASON_FILTERED, sha256=b"")
    servicer.script = numbered(accepted(), withheld, completed())
    result = cli("generate", "p", "--json", "-o", "p.png")
    assert result.returncode == 5
    last = [json.loads(line) for line in result.stdout.splitlines()][-2]
    assert (last["finish_reason"], last["size_bytes"], last["path"]) == ("filtered", 0, None)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_image_is_not_written(cli, servicer, tmp_path):
    servicer.script = numbered(accepted(), image(picture(), sha256=b"x" * 32), completed())
    result = cli("generate", "p")
    assert result.returncode == 1
    assert "SHA-256" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_the_bar_moves_and_the_picture_forms(environment, servicer, tmp_path):
    servicer.script = draw
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "latentwire", "generate", "p", "--preview"],
        env=environment,
        cwd=tmp_path,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as child:
        os.close(follower)
        output = _read_all(leader)
        assert child.wait(scaled(40)) == 0
    os.close(leader)
    assert "\N{UPPER HALF BLOCK}" in output
    # JPEG may turn a red of 200 into 199 or 201.
    assert "38;2;20" in output or "38;2;19" in output
    assert "image-7.png: 8x8, seed 7" in output


def _read_all(descriptor: int) -> str:
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()
