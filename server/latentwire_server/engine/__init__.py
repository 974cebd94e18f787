"""Many generations on one device, step by step. Knows no proto, no gRPC and no HTTP."""
