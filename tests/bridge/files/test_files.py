"""The files behind image URLs: limited, expiring, private, and removed with their bridge."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing

import pytest

from latentwire_bridge.files.file_store import FileStore
from latentwire_bridge.files.private_folder import PrivateFolder, remove_abandoned
from tests.support.bridge.bridging import bridging


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def store_in(folder, clock, *, max_files=3, max_bytes=100, ttl_s=60.0) -> FileStore:
    return FileStore(folder, max_files=max_files, max_bytes=max_bytes, ttl_s=ttl_s, clock=clock)


def test_a_file_is_stored_under_a_name_that_cannot_be_guessed(tmp_path, clock):
    store = store_in(tmp_path, clock)

    names = {store.put(b"same", media_type="image/png") for _ in range(3)}

    assert len(names) == 3
    for name in names:
        assert len(name.removesuffix(".png")) >= 22  # 128 bits
        stored = store.get(name)
        assert stored.path.read_bytes() == b"same"
        assert stored.media_type == "image/png"


def test_the_oldest_files_are_removed_beyond_the_limit_of_files(tmp_path, clock):
    store = store_in(tmp_path, clock)

    names = [store.put(b"x", media_type="image/png") for _ in range(5)]

    assert [store.get(name) is not None for name in names] == [False, False, True, True, True]
    assert len(list(tmp_path.iterdir())) == len(store._files) == 3


def test_the_oldest_files_are_removed_beyond_the_limit_of_bytes(tmp_path, clock):
    store = store_in(tmp_path, clock)

    names = [store.put(bytes(40), media_type="image/png") for _ in range(3)]

    assert [store.get(name) is not None for name in names] == [False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 80


def test_a_file_larger_than_the_limit_is_not_stored(tmp_path, clock):
    store = store_in(tmp_path, clock)

    name = store.put(bytes(200), media_type="image/png")

    assert store.get(name) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_expires(tmp_path, clock):
    store = store_in(tmp_path, clock)
    old = store.put(b"old", media_type="image/png")
    clock.now += 40
    young = store.put(b"young", media_type="image/png")
    assert store.seconds_left(store.get(old)) == 20

    clock.now += 20

    assert store.get(old) is None
    assert store.get(young) is not None
    store.remove_expired()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"young"]


def test_a_failed_write_leaves_no_entry(tmp_path, clock):
    store = store_in(tmp_path / "gone", clock)

    with pytest.raises(OSError, match="gone"):
        store.put(b"x", media_type="image/png")

    assert store._files == {}


TRICKS = (
    "/files/{name}/",
    "/files/../files/{name}x",
    "/files/..%2f..%2fetc/passwd",
    "/files/%2e%2e/%2e%2e/etc/passwd",
    "/files//etc/passwd",
    "/files/%2Fetc%2Fpasswd",
    "/files/{name}%00",
    "/files/{name}%00.png",
    "/files/.",
    "/files/%2e",
    "/files/secret",
    "/files/" + "a" * 4_000,
)


async def test_no_path_reaches_another_file(server, tmp_path):
    async with bridging(server.address, files_folder=tmp_path) as bridge:
        answer = await bridge.generate(response_format="url")
        name = answer.json["data"][0]["url"].rpartition("/")[2]
        (folder,) = tmp_path.iterdir()
        (folder / "secret").write_text("secret")
        (folder / "link").symlink_to("/etc/passwd")
        opened: list[str] = []
        is_watching = True

        def watch(event: str, arguments: tuple) -> None:
            if is_watching and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
                opened.append(os.fspath(arguments[0]))

        sys.addaudithook(watch)
        for trick in (*TRICKS, "/files/link"):
            path = trick.format(name=name)
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            answer = await bridge.send_raw(request.encode())
            # A slash at the end is legitimate: paths have a canonical form.
            assert answer.status == (200 if trick == "/files/{name}/" else 404), path
            if answer.status == 404:
                assert answer.error["type"] == "invalid_request_error"
        is_watching = False

        assert [path for path in opened if "passwd" in path or "secret" in path] == []
        assert any(path.endswith(name) for path in opened), "the detector sees nothing"


async def test_without_a_writable_folder_only_the_urls_are_missing(server, tmp_path):
    async with bridging(server.address, files_folder=tmp_path) as bridge:
        (folder,) = tmp_path.iterdir()
        folder.rmdir()

        both = await bridge.generate()
        only_url = await bridge.generate(response_format="url")

        assert both.status == 200
        assert set(both.json["data"][0]) == {"b64_json", "seed"}
        assert only_url.status == 500
        assert only_url.headers["x-should-retry"] == "false"
        assert str(tmp_path) not in only_url.data.decode()


async def test_files_are_removed_with_their_bridge(server, tmp_path):
    async with bridging(server.address, files_folder=tmp_path) as bridge:
        await bridge.generate()
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.iterdir())) == 1

    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from latentwire_bridge.files.private_folder import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]))
(folder.path / "image.png").write_bytes(b"image")
print(folder.path, flush=True)
time.sleep(60)
"""


def test_the_folder_of_a_killed_bridge_is_removed_at_the_next_start(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        abandoned = process.stdout.readline().strip()
        with closing(PrivateFolder(tmp_path)) as living:
            assert {str(path) for path in tmp_path.iterdir()} == {abandoned, str(living.path)}

            process.kill()
            process.wait()
            remove_abandoned(tmp_path)

            assert list(tmp_path.iterdir()) == [living.path]


def test_files_and_links_with_the_name_of_our_folders_stay(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    (tmp_path / "latentwire-bridge-link").symlink_to(elsewhere)
    (tmp_path / "latentwire-bridge-file").write_text("mine")

    remove_abandoned(tmp_path)

    assert (elsewhere / "file").exists()
    assert (tmp_path / "latentwire-bridge-file").exists()
