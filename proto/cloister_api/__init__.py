"""Cloister's gRPC APIs: stubs, generated beside their .proto files (`make generate`), and `wire`."""
