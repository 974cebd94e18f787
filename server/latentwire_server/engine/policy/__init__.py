"""Scheduling rules as plain arithmetic: which rows share the next call."""
