"""What the service and the bridge share: their settings and their processes."""
