"""The gRPC services: translation between messages and the domain, nothing else."""
