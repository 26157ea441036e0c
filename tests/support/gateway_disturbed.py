"""A gateway that tests may disturb, put in order again before each of them."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from support.gateway_addresses import OTHER_CLUSTER, SERVER
from support.gateway_rig import PARTS, until
from support.gateway_world import World, world

ONE, TWO, FLOODER = "10.90.0.11", "10.90.0.12", "10.90.0.20"
BOTH = {ONE: "p", TWO: "p", FLOODER: "p"}
HOSTS = {"p": ("ok.test", "other.test", "*.wild.test")}


@contextlib.contextmanager
def disturbed(folder: Path) -> Iterator[World]:
    """One gateway, started in a folder."""
    with world(folder) as made:
        made.internet.names.update(
            {"ok.test": [SERVER], "other.test": [SERVER], "cluster.wild.test": [OTHER_CLUSTER]}
        )
        yield made


def in_order(here: World) -> World:
    """The gateway with its sandboxes, everything running, and nothing seen yet."""
    for part in PARTS:
        if not here.pod.alive(part):
            here.pod.start(part)
    until(lambda: here.http("/readyz") != "", "the agent")
    here.operator.apply(BOTH, HOSTS)
    until(here.ready, "readiness")
    here.internet.forget()
    return here


def echo(made: ssl.SSLSocket, line: bytes = b"x\n") -> bool:
    """Whether a tunnel's far end answers."""
    made.sendall(line)
    return made.recv(100) == b"echo " + line


def cut(made: socket.socket) -> bool:
    """Whether a connection is over; waits for its end."""
    try:
        while made.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def runtime(path: str, command: str) -> str:
    """What haproxy answers."""
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
        made.sendall(command.encode() + b"\n")
        parts = []
        while part := made.recv(65536):
            parts.append(part)
        return b"".join(parts).decode()
