"""The schedulers of diffusers, by kebab-case ids."""
