"""Trees that are to end, also where nobody can look for the processes in them.

A look takes a descriptor, and tools can take all that the server may have. Who ends a shell or a
program must not fail by that: it would keep the descriptors that come free with its end. So such a
tree is kept in mind, and looked for until somebody can.
"""

import asyncio
from collections.abc import Collection

from .kin import kill_left, kill_tree

AGAIN_SECONDS = 1.0
"""Between two tries, each of which takes some seconds."""


class Unended:
    """Those of one server. Used on the event loop only."""

    def __init__(self) -> None:
        self._marks: set[str] = set()
        self._ending: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._marks)

    async def end(self, leader: int, mark: str) -> None:
        """End a tree, of which no other may have the mark later; what cannot be looked for now is
        ended some time.
        """
        try:
            await kill_tree(leader, mark)
        except OSError:
            self._keep((mark,))

    async def end_left(self, marks: Collection[str]) -> None:
        """The same with what is left of trees whose leaders have ended."""
        try:
            await kill_left(marks)
        except OSError:
            self._keep(marks)

    def _keep(self, marks: Collection[str]) -> None:
        self._marks.update(marks)
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        try:
            while self._marks:
                await asyncio.sleep(AGAIN_SECONDS)
                tried = frozenset(self._marks)
                try:
                    await kill_left(tried)
                except OSError:
                    continue
                self._marks -= tried
        finally:
            self._ending = None
