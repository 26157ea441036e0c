"""What a connection takes of a gateway's memory: the kernel counts buffers as a container's own."""

import socket
from collections.abc import Iterator

import pytest

from support.gateway_addresses import SERVER
from support.gateway_buffers import filled
from support.gateway_world import World, world

pytestmark = pytest.mark.long

SOURCE = "10.90.0.11"
CONNECTIONS = 4
READ, WHOLE = 24_000_000, 48_000_000
"""Bytes: so much is read as fast as it comes, for the kernel to make its buffers large."""
MOST = 4 * 1024 * 1024
"""Bytes that a connection may take in all sockets of all containers; by the kernel's own rules it
takes from 8 to 21 MB."""
WAYS = ("plain", "tunnel", "by name")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with a sandbox that may ask a host for large answers."""
    with world(tmp_path_factory.mktemp("memory"), {}) as made:
        made.internet.names["ok.test"] = [SERVER]
        made.operator.apply({SOURCE: "some"}, {"some": ("ok.test",)})
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_who_stops_reading_takes_little_of_a_gateway(here: World, way: str) -> None:
    held = []
    try:
        for _ in range(CONNECTIONS):
            held.append(made := asked(here, way))
            seen = 0
            while seen < READ:
                seen += len(made.recv(1 << 18))
        assert filled(here) < CONNECTIONS * MOST
    finally:
        for each in held:
            each.close()


def asked(here: World, way: str) -> socket.socket:
    """A connection over which a large answer comes."""
    if way == "plain":
        made = here.client.connect(SOURCE)
        path = f"http://ok.test/{WHOLE}"
    else:
        dial = here.client.open if way == "tunnel" else here.client.direct
        made, path = dial(SOURCE, "ok.test"), f"/{WHOLE}"
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
    return made
