"""Reading what a program prints, from a pipe or a terminal, into its output store."""

import asyncio
import os

from .hands import Hands
from .inlet import Inlet
from .outputs import OutputStore
from .wakes import wake

STDOUT, STDERR, TERMINAL = 1, 2, 3
_LOOK_SECONDS = 0.1
"""How often a terminal is looked at that no process has open."""


class Source(Inlet):
    """Our end of one stream."""

    def __init__(
        self, fd: int, stream: int, store: OutputStore, hands: Hands, *, terminal: bool = False
    ) -> None:
        """Others use the descriptor of a terminal, too, until `drain` or `close` is called.

        Closed before, it would be something else's when they use it.
        """
        os.set_blocking(fd, False)
        super().__init__(fd, hands, terminal=terminal)
        self._stream = stream
        self._store: OutputStore | None = store
        self._left = False
        """Whether no process had the terminal open when it was last looked at."""
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when no process holds the other end any more."""

    @property
    def held(self) -> bool:
        return super().held and not self._left

    async def flush(self) -> None:
        self._left = False
        await super().flush()

    def drain(self) -> None:
        """From now on read and forget."""
        self._store = None
        if self._left:
            self.close()
        super().drain()

    def close(self) -> None:
        super().close()
        wake(self.closed)

    def took(self, data: bytes) -> None:
        if self._store is not None:
            self._store.add(self._stream, data)

    def over(self) -> None:
        # A terminal can be opened again by who belongs to it, and closing it now would end them.
        if self._store is None:
            self.close()
        elif self._fd >= 0:
            self._left = True
            self._loop.call_later(_LOOK_SECONDS, self._look_again)
        wake(self.closed)

    def _look_again(self) -> None:
        if self._fd >= 0 and self._left:
            self._left = False
            if self._wanted:
                self.go_on()
