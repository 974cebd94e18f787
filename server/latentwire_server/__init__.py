"""The Latentwire server."""
