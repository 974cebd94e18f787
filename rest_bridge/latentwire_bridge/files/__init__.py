"""Storage of the images behind URLs."""
