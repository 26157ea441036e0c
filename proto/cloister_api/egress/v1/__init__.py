"""Version 1 of the `cloister.egress` API."""
