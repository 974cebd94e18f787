"""The HTTP edge: callers, bodies, browsers, rate limits."""
