"""Typed views of the custom resources, and what the operator's layers ask of each other."""
