"""The REST routes and their table."""
