"""Trying the network: who has nothing to try it with does not say that it is closed."""

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_sandbox import probing
from cloister_sandbox.errors import Busy
from cloister_sandbox.probing import accepts

TAKES_ALL_PORTS = """
import asyncio, contextlib, pathlib, socket, subprocess
from cloister_sandbox.errors import Busy
from cloister_sandbox.probing import accepts
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40015")
listening = socket.create_server(("127.0.0.1", 7000))
print(asyncio.run(accepts("127.0.0.1", 7000, 5)))
held = []
for port in range(40_000, 40_016):
    held.append(socket.socket())
    with contextlib.suppress(OSError):
        held[-1].bind(("", port))
try:
    print(asyncio.run(accepts("127.0.0.1", 7000, 5)))
except Busy as error:
    print(error.reason)
"""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """Somebody who accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def port(listening: socket.socket) -> int:
    """Where it listens."""
    found: int = listening.getsockname()[1]
    return found


async def test_who_accepts_and_who_does_not(listening: socket.socket) -> None:
    where = port(listening)
    assert await accepts("127.0.0.1", where, 5)
    listening.close()
    assert not await accepts("127.0.0.1", where, 5)


async def test_who_never_answers(listening: socket.socket) -> None:
    """Its queue is full: the kernel answers nobody any more."""
    listening.listen(0)
    where = port(listening)
    with socket.create_connection(("127.0.0.1", where)):
        assert not await accepts("127.0.0.1", where, 0.2)


async def test_who_is_kept_from_looking_sees_it_all_the_same(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool may slow the server down until its time is over."""

    async def over(*_: object) -> None:
        pass

    monkeypatch.setattr(probing, "_settled", over)
    assert await accepts("127.0.0.1", port(listening), 0)


async def test_who_accepts_and_breaks_it_off_accepted(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a balancer does that has nobody behind it."""

    async def broken(*_: object) -> None:
        accepted, _ = listening.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()

    monkeypatch.setattr(probing, "_settled", broken)
    assert await accepts("127.0.0.1", port(listening), 5)


async def test_without_an_address_of_ipv6_nothing_is_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(*_: object) -> int:
        return errno.EADDRNOTAVAIL

    monkeypatch.setattr(socket.socket, "connect_ex", nothing)
    monkeypatch.setattr(probing, "_ADDRESSES", Path(os.devnull))
    assert not await accepts("::2", 1, 1)
    with pytest.raises(Busy):
        await accepts("127.0.0.1", 1, 1)


@pytest.mark.long
def test_who_takes_all_ports_proves_nothing() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", TAKES_ALL_PORTS],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "OUT_OF_RESOURCES"]
