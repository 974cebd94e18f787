"""Requests, from the caller's draft to the complete request that the engine runs."""
