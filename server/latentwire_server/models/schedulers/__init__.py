"""Schedulers of diffusers behind kebab-case ids."""
