"""Runs the calls on standard input with ``openai`` 0.28; prints what its user gets.

One line of JSON per call and result. It runs in the environment of its client, without our code.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import openai

METHODS = {
    "generate": (openai.Image.create, openai.Image.acreate),
    "edit": (openai.Image.create_edit, openai.Image.acreate_edit),
    "vary": (openai.Image.create_variation, openai.Image.acreate_variation),
    "list": (openai.Model.list, openai.Model.alist),
    "retrieve": (openai.Model.retrieve, openai.Model.aretrieve),
}


def run(call):
    client = call["client"]
    openai.api_base, openai.api_key = client["base_url"], client["api_key"]
    arguments = {**call["fields"], **call["extra"]}
    if "model" in arguments and call["method"] == "retrieve":
        arguments["id"] = arguments.pop("model")
    arguments |= {name: base64.b64decode(data) for name, data in call["files"].items()}
    method, async_method = METHODS[call["method"]]
    answer = asyncio.run(async_method(**arguments)) if call["is_async"] else method(**arguments)
    return {"answer": answer.to_dict_recursive(), "class": type(answer).__name__}


def error_of(error):
    return {
        "class": type(error).__name__,
        "shown": str(error),
        "message": error.user_message,
        "code": error.code,
        "param": getattr(error, "param", None),
        "status": error.http_status,
        "request_id": error.request_id,
    }


for line in sys.stdin:
    try:
        outcome = run(json.loads(line))
    except openai.error.OpenAIError as error:
        outcome = {"error": error_of(error)}
    print(json.dumps({"version": openai.VERSION, **outcome}), flush=True)
