"""Scenes: what one image shows, in words and in pixels."""
