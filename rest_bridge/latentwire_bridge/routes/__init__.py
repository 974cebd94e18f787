"""The handlers of the REST routes."""
