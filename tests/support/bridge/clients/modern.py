"""Runs the calls on standard input with ``openai`` 1.97 or later; prints what its user gets.

One line of JSON per call and result. It runs in the environment of its client, without our code.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from itertools import islice

import openai


def run(call):
    with openai.OpenAI(**call["client"]) as client:
        answer = method_of(client, call["method"])(**arguments_of(call))
        if not call["stream"]:
            return whole(answer)
        with answer as stream:
            return {"events": [seen(event) for event in islice(stream, call["leave_after"])]}


async def run_async(call):
    async with openai.AsyncOpenAI(**call["client"]) as client:
        answer = await method_of(client, call["method"])(**arguments_of(call))
        if not call["stream"]:
            return whole(answer)
        events = []
        async with answer as stream:
            async for event in stream:
                events.append(seen(event))
                if len(events) == call["leave_after"]:
                    break
        return {"events": events}


def method_of(client, name):
    return {
        "generate": client.images.generate,
        "edit": client.images.edit,
        "vary": client.images.create_variation,
        "list": client.models.list,
        "retrieve": client.models.retrieve,
    }[name]


def arguments_of(call):
    files = {name: base64.b64decode(data) for name, data in call["files"].items()}
    extra = {"extra_body": call["extra"]} if call["extra"] else {}
    stream = {"stream": True} if call["stream"] else {}
    return {**call["fields"], **files, **extra, **stream}


def whole(answer):
    return {"answer": answer.to_dict(), "class": type(answer).__name__}


def seen(event):
    return {**event.to_dict(), "class": type(event).__name__}


def error_of(error):
    return {
        "class": type(error).__name__,
        "shown": str(error),
        "message": error.message,
        "code": error.code,
        "param": error.param,
        "status": getattr(error, "status_code", None),
        "request_id": getattr(error, "request_id", None),
    }


for line in sys.stdin:
    call = json.loads(line)
    try:
        outcome = asyncio.run(run_async(call)) if call["is_async"] else run(call)
    except openai.APIError as error:
        outcome = {"error": error_of(error)}
    print(json.dumps({"version": openai.__version__, **outcome}), flush=True)
