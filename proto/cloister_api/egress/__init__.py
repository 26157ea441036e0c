"""The `cloister.egress` API, by version."""
