"""The state file: what the agent holds, and what the squids' helpers read."""

from pathlib import Path

from . import places
from .state import State


class Store:
    """One state file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / places.STATE_FILE

    def load(self) -> State | None:
        """The state of before a restart; None when there is none, or none that can be read."""
        try:
            return State.decode(self._path.read_bytes())
        except (OSError, ValueError):
            return None

    def save(self, state: State) -> None:
        """Replace the file at once and as a whole: from now on it decides. OSError."""
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(state.encode())
        fresh.replace(self._path)
