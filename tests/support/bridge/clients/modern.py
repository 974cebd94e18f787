"""Does with ``openai`` 1.97 and later what standard input asks for; tells what its user sees.

A line of JSON each way. Runs in the environment of its client and imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from itertools import islice

import openai


def told(asked):
    with openai.OpenAI(**asked["client"]) as client:
        answer = method_of(client, asked["call"])(**arguments_of(asked))
        if not asked["stream"]:
            return whole(answer)
        with answer as stream:
            return {"events": [seen(event) for event in islice(stream, asked["leave_after"])]}


async def told_async(asked):
    async with openai.AsyncOpenAI(**asked["client"]) as client:
        answer = await method_of(client, asked["call"])(**arguments_of(asked))
        if not asked["stream"]:
            return whole(answer)
        events = []
        async with answer as stream:
            async for event in stream:
                events.append(seen(event))
                if len(events) == asked["leave_after"]:
                    break
        return {"events": events}


def method_of(client, call):
    return {
        "generate": client.images.generate,
        "edit": client.images.edit,
        "vary": client.images.create_variation,
        "list": client.models.list,
        "retrieve": client.models.retrieve,
    }[call]


def arguments_of(asked):
    files = {name: base64.b64decode(data) for name, data in asked["files"].items()}
    extra = {"extra_body": asked["extra"]} if asked["extra"] else {}
    stream = {"stream": True} if asked["stream"] else {}
    return {**asked["fields"], **files, **extra, **stream}


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
    asked = json.loads(line)
    try:
        outcome = asyncio.run(told_async(asked)) if asked["is_async"] else told(asked)
    except openai.APIError as error:
        outcome = {"error": error_of(error)}
    print(json.dumps({"version": openai.__version__, **outcome}), flush=True)
