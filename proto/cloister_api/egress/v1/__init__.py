"""Version 1 of the `cloister.sessions` API."""
