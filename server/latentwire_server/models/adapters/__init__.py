"""LoRA and textual inversion files, and the networks that they are loaded into."""
