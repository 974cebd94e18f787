"""Requests, from the caller's draft to a complete request that the engine accepts."""
