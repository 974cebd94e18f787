"""What holds for every test: no network, one's own settings, no blocked event loop."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from blockbuster import blockbuster_ctx

from tests.support.crash_safe_scheduling import CrashSafeScheduling
from tests.support.time_limits import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdist.remote import Producer

TESTS = Path(__file__).parent
# Cheapest first: a broken contract or rule is heard of within seconds.
FOLDERS = (
    "contract", "engine", "imaging", "client", "server", "bridge", "models", "embedded", "faults",
)  # fmt: skip
OUR_PACKAGES = ("latentwire", "latentwire_bridge", "latentwire_server")
# Begun first among the slow ones: whoever is last runs alone on one of the cores.
LONGEST = ("test_readme.py", "test_wheel.py", "test_embedded_model.py", "test_benchmarks.py")
# Folders whose event loop must never block; the engine's tests block it on purpose.
LOOPS_ARE_WATCHED = {"bridge", "client", "server"}

# Read by the libraries when they are imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [name for name in os.environ if name.startswith("LATENTWIRE_")]:
    if not _name.startswith("LATENTWIRE_TEST_"):
        del os.environ[_name]
# A shell starts background jobs deaf to Ctrl-C; the programs under test must hear it nevertheless.
signal.signal(signal.SIGINT, signal.default_int_handler)
# OpenVINO reports its use from a forked child. A child of a worker inherits the worker's threads'
# locks, which kills it or leaves it waiting, and the pipe to the controller: while it lives, the
# controller does not notice that the worker is dead. Where the package that reports is missing,
# OpenVINO does without.
sys.modules["openvino_telemetry"] = None
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _refuse_to_fork() -> None:
    message = "a test forks its worker"
    raise RuntimeError(message)


# What is raised there is reported as unraisable, and so fails the test.
os.register_at_fork(before=_refuse_to_fork)

# Time limits are pytest-timeout's; the same examples in every run.
hypothesis.settings.register_profile("latentwire", deadline=None, derandomize=True)
hypothesis.settings.load_profile("latentwire")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> CrashSafeScheduling:
    return CrashSafeScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the folders in the order above, and in each the slow tests last; scales time limits."""
    for item in items if SCALE != 1 else ():
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit else float(item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * SCALE), append=False)
    rank = {folder: number for number, folder in enumerate(FOLDERS)}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("slow") is not None,
            item.path.name not in LONGEST,
            rank.get(_folder(item.path), len(FOLDERS)),
        )
    )


@pytest.fixture(autouse=True)
def _event_loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test in which our code makes a blocking call on the event loop's thread."""
    if _folder(request.path) not in LOOPS_ARE_WATCHED:
        yield
        return
    with blockbuster_ctx(list(OUR_PACKAGES)) as detector:
        # Held for microseconds by asyncio's own queues and by the logging of every library.
        detector.functions["threading.Lock.acquire"].deactivate()
        yield


@pytest.fixture
def unused_port() -> Callable[[], int]:
    """Gives ports on which nobody listens."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


def _folder(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]
