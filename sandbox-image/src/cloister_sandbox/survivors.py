"""What goes on of programs that ended: known by their trees, so that it ends with the server."""

import asyncio
import functools

from .kin import forget_tree, living
from .looks import in_thread
from .unended import Unended

_FIRST_LOOK = 256


class Survivors:
    """Trees that lost their leader; used on the event loop only."""

    def __init__(self, unended: Unended, first_look: int = _FIRST_LOOK) -> None:
        self._unended = unended
        self._marks: set[str] = set()
        self._first_look = self._next_look = first_look
        """How many there must be before somebody looks which of them are gone."""
        self._looking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, mark: str) -> None:
        """Something of this tree goes on."""
        self._marks.add(mark)
        if len(self._marks) >= self._next_look and self._looking is None:
            self._looking = asyncio.create_task(self._forget())

    async def kill(self) -> None:
        """End all of them."""
        await self._unended.end_left(self._marks)

    async def _forget(self) -> None:
        """Forget the trees of which nothing is left. There are no more others than processes."""
        known = frozenset(self._marks)
        try:
            # Twice: who starts another and ends can be missed by a look.
            for _ in range(2):
                known -= await in_thread(functools.partial(living, known))
            for each in known:
                self._marks.discard(each)
                forget_tree(each)
        except OSError:
            # No descriptor is left for it. The next one that goes on has it looked again.
            pass
        finally:
            self._next_look = max(self._first_look, 2 * len(self._marks))
            self._looking = None
