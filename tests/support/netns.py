"""Network namespaces for tests, entered by threads: sockets stay where they were made."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Netns:
    """A network namespace that ends with the process that made it."""

    def __init__(self) -> None:
        # It ends when its stdin does, also when this process is killed.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            raise RuntimeError("no network namespace can be made: these tests need root")
        self.path = f"/proc/{self._holder.pid}/ns/net"

    @property
    def pid(self) -> int:
        """Of a process in it."""
        return self._holder.pid

    def run(self, *command: str) -> None:
        """Run a command in it; RuntimeError when it fails."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is in it; what it opens stays in it."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
                try:
                    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(descriptor)
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def close(self) -> None:
        """End it."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()

    def __enter__(self) -> "Netns":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def join(one: Netns, name: str, other: Netns, other_name: str) -> None:
    """Make a cable between two namespaces; both ends are up."""
    one.run("ip", "link", "add", name, "type", "veth", "peer", "name", "peer0")
    one.run("ip", "link", "set", "peer0", "netns", str(other.pid), "name", other_name)
    for space, end in ((one, name), (other, other_name)):
        space.run("ip", "link", "set", end, "up")
