"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging

from latentwire_server.logging_setup import JsonFormatter
from tests.support.server.serving import events_of, request, serving

SECRET = "a prompt that stays private"


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("latentwire_server.x", logging.INFO, "f", 1, message, args, None)


def test_the_json_line_carries_the_fields_of_the_template():
    line = json.loads(JsonFormatter().format(record("done id=%s took_s=%.3f n=%d", "a b", 1.5, 2)))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "latentwire_server.x",
        "event": "done",
        "id": "a b",
        "took_s": 1.5,
        "n": 2,
    }


def test_a_line_without_fields_is_an_event():
    line = json.loads(JsonFormatter().format(record("%s is 100%% plain", "this")))
    assert line["event"] == "this is 100% plain"


async def test_each_generation_ends_with_one_line_and_no_prompt(caplog):
    caplog.set_level(logging.INFO, logger="latentwire_server")
    async with serving() as server:
        responses = await events_of(
            server.stub.GenerateImage(request(SECRET, negative_prompt=SECRET))
        )
    name = responses[0].generation.removeprefix("generations/")
    ends = [one for one in caplog.messages if "generation ended" in one]
    assert len(ends) == 1
    assert name in ends[0]
    assert "outcome=succeeded" in ends[0]
    assert SECRET not in caplog.text
    assert any(one.startswith("ready address=127.0.0.1:") for one in caplog.messages)
