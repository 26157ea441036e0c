"""The one error of this package."""


class ClusterError(Exception):
    """A command cannot be carried out; the message says why and what to do."""
