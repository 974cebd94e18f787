"""Loading: from a folder, a hub id or a checkpoint to a model."""
