"""Pixels in and out of image files. Knows no engine, no gRPC and no torch."""
