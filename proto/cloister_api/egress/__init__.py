"""The `cloister.sessions` API, by version."""
