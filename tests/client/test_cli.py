"""The command line: its output, its calls to the server and its exit codes."""

from __future__ import annotations

import json

import grpc
import pytest
from google.rpc import error_details_pb2 as details

from tests.support.client.generating import DESCRIPTION, image_file
from tests.support.client.scripted_server import Abort


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("INVALID_ARGUMENT", "INVALID_FIELDS", 2),
        ("NOT_FOUND", "MODEL_NOT_FOUND", 2),
        ("UNAVAILABLE", "DRAINING", 3),
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 4),
        ("INTERNAL", "PIPELINE_ERROR", 1),
    ],
)
def test_an_error_has_its_exit_status_and_its_lines(cli, servicer, code, reason, status):
    bad = details.BadRequest()
    bad.field_violations.add(field="width", description="width is 7; allowed: 64 to 512")
    info = details.ErrorInfo(reason=reason)
    servicer.script = [Abort(grpc.StatusCode[code], "it failed", (info, bad))]
    result = cli("generate", "p")
    assert result.returncode == status
    assert result.stderr.splitlines() == [
        "latentwire: it failed",
        "width: width is 7; allowed: 64 to 512",
    ]


def test_an_error_can_be_printed_as_json(cli, servicer):
    retry = details.RetryInfo()
    retry.retry_delay.FromSeconds(3)
    info = details.ErrorInfo(reason="QUEUE_FULL")
    servicer.script = [Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (info, retry))]
    result = cli("generate", "p", "--json")
    assert result.returncode == 4
    (error,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert (error["event"], error["error"], error["retry_after_s"]) == (
        "error",
        "QueueFullError",
        3.0,
    )
    assert "try again in 3 s" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "generate",
        "generate p -o fox.gif",
        "generate p -o fox.png --format jpeg",
        "generate p -o nowhere/fox.png",
        "generate p -n 2 -o -",
        "generate p --json -o -",
        "generate p --sigmas karras",
        "generate p --label novalue",
        "generate p --seed 99999999999999999999",
        "generate --like missing.png",
        "inspect missing.png",
        "models --server https://host:port",
        "models load a b",
        "models drop a",
        "serve --port many",
    ],
)
def test_an_invalid_command_line_exits_with_2_without_a_call(cli, servicer, arguments):
    result = cli(*arguments.split())
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr
    assert servicer.requests == []


def test_a_key_that_is_invalid_in_a_header_exits_with_2(cli, monkeypatch):
    monkeypatch.setenv("LATENTWIRE_API_KEY", "secret\n")
    result = cli("info")
    assert result.returncode == 2
    assert "secret" not in result.stderr


def test_an_unreachable_server_exits_with_3(cli):
    result = cli("info", "--server", "127.0.0.1:1")
    assert result.returncode == 3
    assert result.stderr.startswith("latentwire: ")


def test_models_are_listed_and_shown(cli):
    assert "a *" in cli("models").stdout
    page = cli("models", "b").stdout
    assert "models/b" in page
    assert "default, karras" in page
    assert ["memory", "3", "MiB"] in [line.split() for line in page.splitlines()]
    listed = [json.loads(line) for line in cli("models", "--json").stdout.splitlines()]
    assert [model["name"] for model in listed] == ["models/a", "models/b"]


def test_models_are_loaded_and_unloaded(cli):
    loaded = cli("models", "load", "b")
    assert (loaded.stdout, loaded.stderr) == ("models/b is ready\n", "")
    assert cli("models", "unload", "b").stdout == "models/b is unloaded\n"
    assert json.loads(cli("models", "load", "b", "--json").stdout)["state"] == "ready"


def test_the_server_and_its_generations_are_shown(cli, servicer):
    assert "1.2.3" in cli("info").stdout
    assert "1/4" in cli("list").stdout
    assert cli("cancel", "g1").stdout == "generations/g1 is cancelled\n"
    assert servicer.cancelled_names == ["generations/g1"]


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_inspect_prints_the_request_in_a_file(cli, tmp_path, image_format):
    (tmp_path / "fox").write_bytes(image_file(image_format))
    page = cli("inspect", "fox").stdout.splitlines()
    assert "prompt          a red fox 🦊" in page
    assert "scheduler.id    euler" in page
    assert json.loads(cli("inspect", "fox", "--json").stdout) == json.loads(DESCRIPTION)


def test_inspect_prints_the_grpcurl_command(cli, tmp_path, address):
    (tmp_path / "fox.png").write_bytes(image_file())
    command = cli("inspect", "fox.png", "--as-grpcurl").stdout
    assert command.startswith("grpcurl -plaintext -d '{")
    assert command.endswith(f" {address} latentwire.v1.ImageGeneration/GenerateImage\n")


def test_like_repeats_the_request_in_a_file_with_changes(cli, servicer, tmp_path):
    (tmp_path / "fox.png").write_bytes(image_file())
    assert cli("generate", "--like", "fox.png", "--seed", "8").returncode == 0
    assert servicer.requests[0].prompt == "a red fox 🦊"
    assert servicer.requests[0].seed == 8
    assert servicer.requests[0].scheduler.id == "euler"
