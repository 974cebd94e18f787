"""A small model hub in a thread: serves folders the way ``huggingface.co`` serves repositories."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import huggingface_hub
from aiohttp import web

from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(
    repositories: Mapping[str, Path], *, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Serves repositories by id, to a client with an empty cache; yields the files it fetched."""
    fetched: list[str] = []
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(_application(repositories, fetched))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(_start(runner), loop).result(timeout=scaled(10))
        constants = huggingface_hub.constants
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield fetched
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=scaled(10))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(runner: web.AppRunner) -> int:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner.addresses[0][1]


def _application(repositories: Mapping[str, Path], fetched: list[str]) -> web.Application:
    def folder_of(request: web.Request) -> Path:
        folder = repositories.get(request.match_info["id"])
        if folder is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        return folder

    def files_of(folder: Path) -> dict[str, Path]:
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in found}

    async def info(request: web.Request) -> web.Response:
        siblings = [{"rfilename": name} for name in files_of(folder_of(request))]
        return web.json_response(
            {"id": request.match_info["id"], "sha": COMMIT, "siblings": siblings}
        )

    async def tree(request: web.Request) -> web.Response:
        return web.json_response(
            [
                {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for name, path in files_of(folder_of(request)).items()
            ]
        )

    async def resolve(request: web.Request) -> web.Response:
        path = files_of(folder_of(request)).get(request.match_info["path"])
        if path is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        if request.method == "GET":
            fetched.append(request.match_info["path"])
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return web.Response(body=data, headers={"X-Repo-Commit": COMMIT, "ETag": etag})

    app = web.Application()
    id_ = "{id:[^/]+/[^/]+}"
    app.router.add_get(f"/api/models/{id_}/revision/{{revision}}", info)
    app.router.add_get(f"/api/models/{id_}/tree/{{revision}}", tree)
    app.router.add_get(f"/api/models/{id_}", info)
    app.router.add_get(f"/{id_}/resolve/{{revision}}/{{path:.+}}", resolve)
    return app
