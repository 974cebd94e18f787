"""The rules of scheduling as plain arithmetic."""
