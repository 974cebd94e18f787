"""Hostile bodies: never a 5xx, always OpenAI's envelope, and nothing is generated."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from tests.support.bridge.bridging import assert_clean

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
BODIES = {
    "empty": b"",
    "spaces": b" \r\n ",
    "not JSON": b"{prompt: a}",
    "half": b'{"prompt": "a"',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "too many digits": b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}",
    "NaN": b'{"prompt": "a", "guidance_scale": NaN}',
    "infinity": b'{"prompt": "a", "guidance_scale": -Infinity}',
    "twice": b'{"prompt": "a", "n": 1, "n": 1000}',
    "null": b"null",
    "array": b'[{"prompt": "a"}]',
    "string": b'"prompt"',
    "number": b"1",
    "boolean": b"true",
    "two objects": b'{"prompt": "a"}{"prompt": "b"}',
}

FIELDS = {
    "prompt is missing": ({"prompt": None}, "prompt"),
    "prompt is empty": ({"prompt": ""}, "prompt"),
    "prompt is blank": ({"prompt": "  \n"}, "prompt"),
    "prompt is a list": ({"prompt": ["a"]}, "prompt"),
    "prompt is a number": ({"prompt": 1}, "prompt"),
    "prompt is half a character": ({"prompt": "\ud800"}, "prompt"),
    "prompt is too long": ({"prompt": "a" * 40_000}, "prompt"),
    "negative prompt is half a character": ({"negative_prompt": "a\udfff"}, "negative_prompt"),
    "model is a number": ({"model": 7}, "model"),
    "n is 0": ({"n": 0}, "n"),
    "n is 11": ({"n": 11}, "n"),
    "n is 1.5": ({"n": 1.5}, "n"),
    "n is a boolean": ({"n": True}, "n"),
    "n is a word": ({"n": "two"}, "n"),
    "n has 4,000 digits": ({"n": 10**4_000}, "n"),
    "size is a word": ({"size": "large"}, "size"),
    "size is a number": ({"size": 512}, "size"),
    "size has one side": ({"size": "512x"}, "size"),
    "size has a side of 0": ({"size": "0x512"}, "size"),
    "size is negative": ({"size": "-512x512"}, "size"),
    "size is huge": ({"size": "999999x999999"}, "size"),
    "size has Arabic digits": ({"size": "\u0665\u0661\u0662x512"}, "size"),
    "size is not the width": ({"size": "512x512", "width": 256}, "width"),
    "width is 0": ({"width": 0}, "width"),
    "height is a fraction": ({"height": 64.5}, "height"),
    "response_format is unknown": ({"response_format": "base64"}, "response_format"),
    "output_format is not served": ({"output_format": "gif"}, "output_format"),
    "output_compression is 101": ({"output_compression": 101}, "output_compression"),
    "PNG is compressed": ({"output_compression": 50}, "output_compression"),
    "background is transparent": ({"background": "transparent"}, "background"),
    "quality is unknown": ({"quality": "ultra"}, "quality"),
    "style is unknown": ({"style": "sober"}, "style"),
    "a stream of urls": ({"stream": True, "response_format": "url"}, "response_format"),
    "stream is a word": ({"stream": "yes"}, "stream"),
    "partial_images is 4": ({"partial_images": 4}, "partial_images"),
    "partial_images is -1": ({"partial_images": -1}, "partial_images"),
    "image is given": ({"image": "data:image/png;base64,AA=="}, "image"),
    "a lora has no id": ({"loras": [{"scale": 1}]}, "loras"),
    "a lora has a path": ({"lora": {"id": "a", "path": "/etc"}}, "lora"),
    "a lora's scale is no number": ({"lora": {"id": "a", "scale": "x"}}, "lora"),
    "loras are no JSON": ({"loras": "[{"}, "loras"),
    "steps are 0": ({"steps": 0}, "steps"),
    "steps are 2**40": ({"num_inference_steps": 2**40}, "num_inference_steps"),
    "steps contradict": ({"steps": 3, "num_inference_steps": 4}, "steps"),
    "guidance is negative": ({"guidance_scale": -1}, "guidance_scale"),
    "guidance is too much": ({"guidance_scale": 1e30}, "guidance_scale"),
    "guidance is beyond floats": ({"guidance_scale": 10**400}, "guidance_scale"),
    "guidance is a word": ({"cfg_scale": "much"}, "cfg_scale"),
    "guidance is NaN in words": ({"guidance_scale": "nan"}, "guidance_scale"),
    "seed is -2": ({"seed": -2}, "seed"),
    "seed is 2**63": ({"seed": 2**63}, "seed"),
    "seed is a list": ({"seed": [1]}, "seed"),
    "scheduler is unknown": ({"scheduler": "magic"}, "scheduler"),
    "scheduler is a number": ({"scheduler": 1}, "scheduler"),
    "scheduler has no id": ({"scheduler": {"sigmas": "karras"}}, "scheduler"),
    "scheduler has more": ({"scheduler": {"id": "euler", "eta": 1}}, "scheduler"),
    "sigmas are unknown": ({"scheduler": {"id": "euler", "sigmas": "x"}}, "scheduler"),
    "clip_skip is 99": ({"clip_skip": 99}, "clip_skip"),
    "user is an object": ({"user": {"name": "me"}}, "user"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_not_a_valid_json_object_is_refused(bridge, server, name):
    answer = await bridge.send("POST", PATH, data=BODIES[name], headers=JSON)

    assert answer.status == 400, answer.data
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.error["message"]) < 300
    assert_clean(answer)
    assert server.model.calls == []


@pytest.mark.parametrize("name", FIELDS)
async def test_an_invalid_value_is_refused_with_the_name_of_its_field(bridge, server, name):
    fields, param = FIELDS[name]

    answer = await bridge.generate(**fields)

    assert answer.status == 400, answer.data
    assert answer.error["param"] == param
    assert answer.error["code"]
    assert len(answer.error["message"]) < 500
    assert_clean(answer)
    assert server.model.calls == []


async def test_a_number_beyond_the_range_of_floats_is_refused(bridge):
    body = b'{"prompt": "a", "guidance_scale": 1e400}'

    answer = await bridge.send("POST", PATH, data=body, headers=JSON)

    assert answer.status == 400
    assert answer.error["param"] == "guidance_scale"


async def test_a_byte_order_mark_is_accepted(bridge):
    body = b'\xef\xbb\xbf{"prompt": "a red circle"}'

    assert (await bridge.send("POST", PATH, data=body, headers=JSON)).status == 200


async def test_unknown_fields_are_ignored(bridge):
    fields = {"frobnicate": [1, {"a": None}], "complexity": "low", "__proto__": 1, "": 2}

    assert (await bridge.generate(**fields)).status == 200


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/x+json"]
)
async def test_the_content_types_of_json_are_accepted(bridge, content_type):
    answer = await bridge.send(
        "POST", PATH, data=b'{"prompt": "a"}', headers={"Content-Type": content_type}
    )

    assert answer.status == 200


async def test_a_body_without_a_content_type_is_read_as_json(bridge):
    answer = await bridge.send(
        "POST", PATH, data=b'{"prompt": "a"}', skip_auto_headers=["Content-Type"]
    )

    assert answer.status == 200


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"],
)
async def test_other_content_types_are_refused_with_the_one_to_send(bridge, server, content_type):
    answer = await bridge.send(
        "POST", PATH, data=b'{"prompt": "a"}', headers={"Content-Type": content_type}
    )

    assert answer.status == 415
    assert "-H 'Content-Type: application/json'" in answer.error["message"]
    assert server.model.calls == []


async def test_a_body_that_is_too_large_is_refused(bridge):
    body = io.BytesIO(b'{"prompt": "' + b"a" * 1_100_000 + b'"}')

    answer = await bridge.send("POST", PATH, data=body, headers=JSON)

    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
    assert_clean(answer)


async def test_a_compressed_body_counts_by_its_decompressed_size(bridge):
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {**JSON, "Content-Encoding": "gzip"}

    answer = await bridge.send("POST", PATH, data=bomb, headers=headers)

    assert answer.status in (400, 413)
    assert answer.error
    assert_clean(answer)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_compressed_as_declared_is_refused(bridge, encoding):
    headers = {**JSON, "Content-Encoding": encoding}

    answer = await bridge.send("POST", PATH, data=b'{"prompt": "a"}', headers=headers)

    assert answer.status == 400
    assert answer.error
    assert_clean(answer)


def test_pythons_own_parser_fails_on_these_bodies_or_accepts_too_much():
    """Keeps harmless bodies out of the table."""
    parsed = {"NaN", "infinity", "twice", "null", "array", "string", "number", "boolean", "UTF-16"}
    for name, body in BODIES.items():
        if name in parsed:
            json.loads(body)
            continue
        with pytest.raises((ValueError, RecursionError)):
            json.loads(body)
