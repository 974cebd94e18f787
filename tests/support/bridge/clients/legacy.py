"""Does with ``openai`` 0.28 what standard input asks for; tells what its user sees.

A line of JSON each way. Runs in the environment of its client and imports nothing of ours.
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


def told(asked):
    client = asked["client"]
    openai.api_base, openai.api_key = client["base_url"], client["api_key"]
    arguments = {**asked["fields"], **asked["extra"]}
    if "model" in arguments and asked["call"] == "retrieve":
        arguments["id"] = arguments.pop("model")
    arguments |= {name: base64.b64decode(data) for name, data in asked["files"].items()}
    call, call_async = METHODS[asked["call"]]
    answer = asyncio.run(call_async(**arguments)) if asked["is_async"] else call(**arguments)
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
        outcome = told(json.loads(line))
    except openai.error.OpenAIError as error:
        outcome = {"error": error_of(error)}
    print(json.dumps({"version": openai.VERSION, **outcome}), flush=True)
