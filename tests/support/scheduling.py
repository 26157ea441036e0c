"""Which tests one worker of pytest-xdist runs after each other, under --dist loadfile."""

from xdist.scheduler import LoadFileScheduling

_TOGETHER = "tests/unit/sandbox/behaviours/"
"""The reference toolset takes two seconds of processor time to import: one worker does."""
_APART = "tests/simulation/"
"""Its tests share nothing, take seconds each, and fill what the files before leave idle."""


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """File by file, as their servers are shared, but for a few folders."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_APART):
            return nodeid
        return _TOGETHER if nodeid.startswith(_TOGETHER) else nodeid.split("::", 1)[0]
