"""The operator: turns Environments into pools of sandboxes, and gives them to Sessions."""

__version__ = "0.1.0"
