"""OpenAI's clients as processes in their own environments, driven by one line per call."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(__file__).parent / "clients"
LEGACY_PYTHON = ROOT / ".venv-openai-0.28/bin/python"
OLDER_PYTHON = ROOT / ".venv-openai-1.97/bin/python"
NODE_PACKAGE = ROOT / "node_modules/openai"
KEY = "right"
LINE_LIMIT = 2**24
"""Bytes; a line can contain several images."""


@dataclass(frozen=True, kw_only=True)
class ClientCall:
    """One call of a client, in terms that all clients share."""

    method: str = "generate"
    fields: Mapping[str, object] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)
    """Fields that OpenAI's API does not have."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    stream: bool = False
    leave_after: int | None = None
    """The number of events to read before closing the stream; None: all."""
    key: str = KEY
    timeout_s: float = 30.0
    max_retries: int = 0

    def line(self, bridge_url: str, *, is_async: bool) -> bytes:
        # Users write both forms, with and without a slash at the end.
        base_url = f"{bridge_url}/v1/" if is_async else f"{bridge_url}/v1"
        client = {"base_url": base_url, "api_key": self.key}
        client |= {"timeout": self.timeout_s, "max_retries": self.max_retries}
        message = {
            "client": client,
            "method": self.method,
            "is_async": is_async,
            "fields": self.fields,
            "extra": self.extra,
            "files": {name: base64.b64encode(data).decode() for name, data in self.files.items()},
            "stream": self.stream,
            "leave_after": self.leave_after,
        }
        return json.dumps(message).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A client in its environment."""

    name: str
    runtime: Path
    program: str
    needs: Path
    """A path that exists once ``make setup-tests`` has set the environment up."""
    is_legacy: bool = False
    modes: tuple[bool, ...] = (False, True)
    """Whether it is used by coroutines; each mode is tested."""

    def check(self) -> None:
        """Skips the test if the environment is missing; in continuous integration, fails it."""
        if self.needs.exists() and self.runtime.exists():
            return
        message = f"{self.name} is not set up: `make setup-tests` does it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            self.runtime, PROGRAMS / self.program, limit=LINE_LIMIT,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "*", "PYTHONWARNINGS": "ignore"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Running(process=process)
        finally:
            process.stdin.close()
            await process.wait()


@dataclass(frozen=True, kw_only=True)
class Running:
    """A client process that waits for calls."""

    process: asyncio.subprocess.Process

    async def outcome_of(self, line: bytes) -> dict[str, Any]:
        """Returns what the user of the client gets from one call."""
        self.process.stdin.write(line)
        answer = await self.process.stdout.readline()
        assert answer, "the client died; its standard error is above"
        return json.loads(answer)


def _node() -> Path:
    """Returns the Node.js that ``make`` set up, or the machine's own."""
    here = ROOT / ".venv/bin/node"
    return here if here.exists() else Path(shutil.which("node") or here)


LEGACY = Program(
    name="openai 0.28", runtime=LEGACY_PYTHON, program="legacy.py", needs=LEGACY_PYTHON,
    is_legacy=True,
)  # fmt: skip
OLDER = Program(
    name="openai 1.97", runtime=OLDER_PYTHON, program="modern.py", needs=OLDER_PYTHON,
)  # fmt: skip
NEWEST = Program(
    name="openai", runtime=Path(sys.executable), program="modern.py", needs=Path(sys.executable),
)  # fmt: skip
NODE = Program(
    name="openai for Node.js", runtime=_node(), program="node.mjs", needs=NODE_PACKAGE,
    modes=(True,),
)  # fmt: skip
LANGCHAIN = Program(
    name="LangChain", runtime=OLDER_PYTHON, program="dalle_wrapper.py", needs=OLDER_PYTHON,
    modes=(False,),
)  # fmt: skip
