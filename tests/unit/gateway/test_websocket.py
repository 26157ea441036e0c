"""A WebSocket over TLS: it is none of the gateway's business what is said within a tunnel."""

import ssl

from support.gateway_addresses import SERVER
from support.gateway_world import World
from support.websocket_frames import KEY, PING, PONG, TEXT, accepted, frame, unpacked

POD = "10.90.0.11"
MASK = b"\x37\xfa\x21\x3d"
UPGRADE = (
    "GET /chat HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
)


class Messages:
    """The client's side of a WebSocket."""

    def __init__(self, held: ssl.SSLSocket) -> None:
        self._socket = held
        held.sendall(UPGRADE.encode())
        self._said = b""
        while b"\r\n\r\n" not in self._said:
            self._more()
        self.head, _, self._said = self._said.partition(b"\r\n\r\n")

    def send(self, payload: bytes, kind: int = TEXT) -> None:
        """One message."""
        self._socket.sendall(frame(payload, kind, MASK))

    def next(self) -> tuple[int, bytes]:
        """The next message's kind and payload."""
        while (message := unpacked(self._said)) is None:
            self._more()
        kind, payload, self._said = message
        return kind, payload

    def _more(self) -> None:
        more = self._socket.recv(65536)
        assert more, f"cut after {self._said!r}"
        self._said += more


def exchanged(held: ssl.SSLSocket) -> None:
    """Both sides begin, answer, and send more than one record of TLS carries."""
    with held:
        messages = Messages(held)
        assert messages.head.startswith(b"HTTP/1.1 101 ")
        assert accepted(KEY).encode() in messages.head
        assert messages.next() == (PING, b"there?")
        messages.send(b"there?", PONG)
        assert messages.next() == (TEXT, b"there?")
        for payload in (b"one", b"x" * 60_000 + b"y", b"two"):
            messages.send(payload)
            assert messages.next() == (TEXT, payload[::-1])


def test_it_works_in_a_tunnel(here: World) -> None:
    exchanged(here.client.open(POD, "ok.test"))
    (seen,) = here.internet.seen
    assert (seen.address, seen.server_name) == (SERVER, "ok.test")
    assert b"upgrade: websocket\r\n" in seen.headers


def test_it_works_for_clients_that_know_of_no_proxy(here: World) -> None:
    exchanged(here.client.direct(POD, "ok.test"))
