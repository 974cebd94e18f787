"""Trains and exports the small text-to-image model that ships with the product."""
