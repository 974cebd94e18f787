"""Pixels in and out of image files. Independent of the engine, gRPC and torch."""
