"""LoRA and textual inversion files, and the networks made of them."""
