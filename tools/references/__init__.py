"""Generates reference pages from the code: ``python -m tools.references``."""
