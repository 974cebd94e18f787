"""The gRPC face: servicers, interceptors, authentication, statuses, health and reflection."""
