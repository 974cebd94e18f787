"""Stands in for the real server: records its starts and exits as its ``--model`` demands."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from latentwire._services.settings import write_port_file

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=50051)
parser.add_argument("--model")
parser.add_argument("--port-file", type=Path)
parser.add_argument("--config")
parser.add_argument("--max-queued", type=int)
arguments = parser.parse_args()
folder = Path(os.environ["FAKE_FOLDER"])


def stop(*_: object) -> None:
    (folder / "server-stopped").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
if arguments.model == "missing":
    sys.stderr.write("latentwire-server: no such model\n")
    sys.exit(2)
if arguments.model == "broken":
    sys.exit(70)
with (folder / "server-starts").open("a") as starts:
    starts.write(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:]}) + "\n")
write_port_file(arguments.port_file, arguments.port or 40_000)
while True:
    time.sleep(60)
