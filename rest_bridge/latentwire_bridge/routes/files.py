"""``/files/{name}``: finished images behind the URLs of responses."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire._services.process import host_and_port
from latentwire_bridge.openai.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentwire import Image
    from latentwire_bridge.files.file_store import FileStore, StoredFile

FILES_PATH: Final = "/files/"


class FileRoutes:
    """Stores images and serves them. Event loop; files are read and written on threads."""

    def __init__(self, files: FileStore, *, public_url: str | None) -> None:
        """Makes the routes.

        Args:
            files: Where images are kept.
            public_url: What URLs begin with; None for the address that the caller used.
        """
        self._files = files
        self._public_url = public_url

    async def store(self, images: Iterable[Image], *, request: web.Request) -> list[str]:
        """Stores images and returns their URLs.

        Raises:
            OSError: The disk is full.
        """
        base = self._public_url or f"{request.scheme}://{_authority(request)}"
        names = [
            await asyncio.to_thread(self._files.put, image.data, media_type=image.media_type)
            for image in images
        ]
        return [f"{base}{FILES_PATH}{name}" for name in names]

    async def get(self, request: web.Request) -> web.Response:
        """Serves a stored file."""
        stored = self._files.get(request.match_info["name"])
        data = None if stored is None else await asyncio.to_thread(_read, stored)
        if stored is None or data is None:
            message = "the file does not exist or has expired"
            raise ApiError(message, status=HTTPStatus.NOT_FOUND, code="file_not_found")
        headers = {
            "Content-Type": stored.media_type,
            "Cache-Control": f"private, max-age={int(self._files.seconds_left(stored))}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Content-Disposition": f'inline; filename="{stored.path.name}"',
        }
        return web.Response(body=data, headers=headers)


def _read(stored: StoredFile) -> bytes | None:
    try:
        return stored.path.read_bytes()
    except FileNotFoundError:
        # It expired between the look-up and now.
        return None


def _authority(request: web.Request) -> str:
    """Returns the bridge's ``host:port`` as the caller knows it."""
    host = request.headers.get("Host")
    if host:
        return host
    # HTTP/1.0 requires no Host: use this end of the connection.
    address, port = request.get_extra_info("sockname", ("localhost", 80))[:2]
    return host_and_port(address, port)
