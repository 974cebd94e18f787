"""Stands in for the real bridge: ready after a given number of failed probes."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys
from pathlib import Path

from latentwire._services.settings import write_port_file

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=9225)
parser.add_argument("--port-file", type=Path)
parser.add_argument("--config")
parser.add_argument("--server")
arguments = parser.parse_args()
folder = Path(os.environ["FAKE_FOLDER"])
statuses = iter([503] * int(os.environ.get("FAKE_UNREADY_PROBES", "0")))


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(next(statuses, 200) if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def stop(*_: object) -> None:
    (folder / "bridge-stopped").touch()
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
server = http.server.HTTPServer((arguments.host, arguments.port), Ready)
with (folder / "bridge-starts").open("a") as starts:
    starts.write(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:]}) + "\n")
write_port_file(arguments.port_file, server.server_port)
server.serve_forever()
