"""Proto messages to and from the engine's types. No rules, no I/O; any thread."""
