"""Stubs of Cloister's gRPC APIs, generated beside their .proto files (`make generate`)."""
