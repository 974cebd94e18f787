"""Models: what the engine may ask of one, and the families that answer."""
