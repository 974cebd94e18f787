"""The diffusion state of a request: trajectory, phases, initial latents."""
