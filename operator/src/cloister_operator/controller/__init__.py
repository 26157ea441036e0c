"""Reconciles: observe, plan, execute; each step is repeatable and may be the last before a kill."""
