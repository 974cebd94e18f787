"""The HTTP edge: callers, bodies, uploads, browsers, rate limits."""
