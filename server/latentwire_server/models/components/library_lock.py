"""One lock for whatever makes torch modules through diffusers, transformers or PEFT."""

from __future__ import annotations

import threading
from typing import Final

LIBRARY_LOCK: Final = threading.RLock()
"""They patch torch for the whole process meanwhile: two of them at a time would leave each other's
weights without storage. What is made already can be used."""
