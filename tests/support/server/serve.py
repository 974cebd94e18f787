"""The real server with a FakeModel, for its own process: shipped code has no fault hooks.

Accepts the server's own flags. In the environment, ``FAKE_CALL_S`` sets the duration of a denoiser
call, ``FAKE_LOAD_S`` that of loading, and ``FAKE_BREAKS_AT`` the call at which the device fails.
"""

from __future__ import annotations

import os
import time

import torch

from latentwire_server.__main__ import run
from latentwire_server.logging_setup import configure_logging
from latentwire_server.settings.settings import Settings
from tests.support.fake_faults import from_call, raising
from tests.support.fakes import FakeModel
from tests.support.server.serving import ServedModel


def make() -> FakeModel:
    time.sleep(float(os.environ.get("FAKE_LOAD_S", "0")))
    model = FakeModel(call_s=float(os.environ.get("FAKE_CALL_S", "0")))
    breaks_at = os.environ.get("FAKE_BREAKS_AT")
    if breaks_at is not None:
        error = raising(lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"))
        model.faults.append((from_call(int(breaks_at)), error))
    return model


def main() -> None:
    settings = Settings.parse()
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    run(settings, [ServedModel(id="fake", preload=True, is_known=False, make=make)])


if __name__ == "__main__":
    main()
