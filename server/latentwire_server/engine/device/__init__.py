"""The device thread: the loop and the parts of a tick."""
