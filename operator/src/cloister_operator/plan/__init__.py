"""Decisions: pure functions of what is observed, what is wanted and the time."""
