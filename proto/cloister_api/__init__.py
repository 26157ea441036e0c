"""Cloister's gRPC APIs, stubs beside their .proto files (`make generate`), and what sides share."""
