"""The queue, on the event loop: admission, register, housekeeping."""
