"""One lock for all code that builds torch modules with diffusers, transformers or PEFT."""

from __future__ import annotations

import threading
from typing import Final

LIBRARY_LOCK: Final = threading.RLock()
"""The libraries patch torch for the whole process while they build: two at a time would leave each
other's weights without storage. Modules that are built already can be used meanwhile."""
