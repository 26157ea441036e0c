"""A TCP relay that counts what passes and cuts its connections after so many bytes."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator, Sequence


class Relay:
    """Relays to a port of this machine; `cuts` names the bytes after which it cuts, one by one."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._cuts: list[int] = []
        self._ends: set[socket.socket] = set()
        self._since = 0
        self.up = self.down = self.cut = 0
        """Bytes towards the target and back, and connections that were cut on purpose."""
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def plan(self, cuts: Sequence[int]) -> None:
        """Cut after so many bytes from now, then after so many more, and so on; count anew."""
        with self._lock:
            self._cuts, self._since = list(cuts), 0
            self.up = self.down = self.cut = 0

    def close(self) -> None:
        """Cut everything and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._cut()
        for each in self._threads:
            each.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._ends |= {near, far}
                thread = threading.Thread(target=self._relay, args=(near, far))
                self._threads.append(thread)
                thread.start()

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        try:
            with near, far, contextlib.suppress(OSError):
                while True:
                    for ready in select.select([near, far], [], [])[0]:
                        data = ready.recv(65_536)
                        if not data:
                            return
                        self._count(len(data), up=ready is near)
                        (far if ready is near else near).sendall(data)
        finally:
            with self._lock:
                self._ends -= {near, far}

    def _count(self, size: int, *, up: bool) -> None:
        with self._lock:
            if up:
                self.up += size
            else:
                self.down += size
            self._since += size
            if self._cuts and self._since >= self._cuts[0]:
                self._cuts.pop(0)
                self._since = 0
                self.cut += 1
                self._cut()

    def _cut(self) -> None:
        for each in self._ends:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(target: int) -> Iterator[Relay]:
    """A relay for as long as the context lasts."""
    made = Relay(target)
    try:
        yield made
    finally:
        made.close()
