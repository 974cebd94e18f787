"""Finished images, stored for results that are URLs."""
