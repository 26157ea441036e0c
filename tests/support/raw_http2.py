"""HTTP/2 by hand, for what no client would send."""

import socket
import ssl
import struct
from collections import Counter
from pathlib import Path

from support.sandbox_server import SESSION_NAME, SESSION_UID, Sandbox

DATA, HEADERS, RESET, SETTINGS, PING, WINDOW = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS = 1, 4
LITTLE = struct.pack(">HI", 4, 200)
"""A setting: of each answer no more than so many bytes may be sent."""
MUCH = struct.pack(">I", 1 << 24)
"""A window for all of them together."""
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_frame(message: bytes) -> bytes:
    """A message as gRPC sends it, uncompressed."""
    return struct.pack(">BI", 0, len(message)) + message


def literal(name: str, value: str) -> bytes:
    """A header without compression, both shorter than 127 bytes (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def headers(method: str) -> bytes:
    """The headers of a call."""
    given = {
        ":method": "POST",
        ":scheme": "https",
        ":path": f"/cloister.exec.v1.{method}",
        ":authority": "sandbox",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(literal(name, value) for name, value in given.items())


class RawConnection:
    """A worker's connection, on which anything can be sent."""

    def __init__(self, server: Sandbox, directory: Path) -> None:
        pair = server.authority.issue(uri=f"session:{SESSION_UID}")
        for name, content in (
            ("certificate", pair.certificate),
            ("key", pair.private_key),
            ("ca", server.authority.pem),
        ):
            (directory / name).write_bytes(content)
        context = ssl.create_default_context(cafile=directory / "ca")
        context.load_cert_chain(directory / "certificate", directory / "key")
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self._socket = context.wrap_socket(plain, server_hostname=SESSION_NAME)
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))

    def send(self, data: bytes) -> None:
        """Send bytes; raises OSError when the server takes no more."""
        self._socket.sendall(data)

    def answers(self) -> "Counter[int]":
        """How many frames of each kind come until a ping is answered, or the connection ends."""
        self.send(frame(PING, 0, 0, b"answered"))
        seen: Counter[int] = Counter()
        received = b""
        while True:
            try:
                more = self._socket.recv(65_536)
            except ConnectionResetError:
                more = b""
            if not more:
                return seen
            received += more
            while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3], "big"):
                size, kind = int.from_bytes(received[:3], "big"), received[3]
                payload, received = received[9 : 9 + size], received[9 + size :]
                if kind == PING and payload == b"answered":
                    return seen
                seen[kind] += 1

    def close(self) -> None:
        """Go away."""
        self._socket.close()
