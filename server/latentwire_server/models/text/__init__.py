"""Text encoders and prompt syntax."""
