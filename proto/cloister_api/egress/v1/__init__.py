"""Version 1 of the `cloister.exec` API."""
