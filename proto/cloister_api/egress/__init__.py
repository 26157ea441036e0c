"""The `cloister.exec` API, by version."""
