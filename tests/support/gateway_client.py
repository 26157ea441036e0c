"""Code in sandboxes, as far as a gateway sees it."""

import socket
import ssl

from support.gateway_addresses import GATEWAY, GATEWAY6, TIMEOUT
from support.netns import Netns


class Client:
    """What code in a sandbox does; `source` is its pod's address."""

    def __init__(self, space: Netns, ca: bytes) -> None:
        self.space = space
        self.tls = ssl.create_default_context(cadata=ca.decode())
        # Which name was asked for is seen at the server; one certificate is for all.
        self.tls.check_hostname = False

    def connect(self, source: str, port: int = 3128, room: int = 0) -> socket.socket:
        """A connection to the gateway: to the proxy, or to 443 as a client that knows of none.

        `room`: bytes that it takes before anything of it is read; 0 leaves it to the kernel.
        """
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        target = GATEWAY6 if ":" in source else GATEWAY

        def dial() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.settimeout(TIMEOUT)
            if room:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            try:
                made.bind((source, 0))
                made.connect((target, port))
            except OSError:
                made.close()
                raise
            return made

        return self.space.call(dial)

    def ask(self, source: str, request: str) -> str:
        """Everything that is answered to one raw request; "" for a connection that is cut."""
        with self.connect(source) as made:
            try:
                made.sendall(request.encode("latin-1"))
                return read_all(made).decode("latin-1")
            except OSError:
                return ""

    def get(self, source: str, url: str) -> str:
        """The answer to plain HTTP."""
        host = url.removeprefix("http://").partition("/")[0]
        return self.ask(source, f"GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")

    def tunnel(self, source: str, target: str) -> tuple[socket.socket, str]:
        """A CONNECT: the socket, and the head of the answer."""
        made = self.connect(source)
        head = b""
        try:
            made.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            while not head.endswith(b"\r\n\r\n"):
                byte = made.recv(1)
                if not byte:
                    break
                head += byte
        except OSError:
            made.close()
            raise
        return made, head.decode("latin-1")

    def status(self, source: str, target: str) -> int:
        """The status that a CONNECT is answered with; 0 when it is cut."""
        made, head = self.tunnel(source, target)
        made.close()
        return int(head.split()[1]) if head else 0

    def open(self, source: str, host: str, server_name: str | None = None) -> ssl.SSLSocket:
        """TLS to a host through the gateway; ssl.SSLError or OSError when it is cut."""
        made, head = self.tunnel(source, f"{host}:443")
        if " 200 " not in head:
            made.close()
            raise ConnectionRefusedError(head)
        try:
            return self.tls.wrap_socket(made, server_hostname=server_name or host)
        except BaseException:
            made.close()
            raise

    def direct(self, source: str, server_name: str | None) -> ssl.SSLSocket:
        """TLS to the gateway itself, by a name; ssl.SSLError or OSError when it is cut."""
        made = self.connect(source, 443)
        try:
            return self.tls.wrap_socket(made, server_hostname=server_name)
        except BaseException:
            made.close()
            raise

    def fetch(self, source: str, host: str, server_name: str | None = None) -> bytes:
        """One request over TLS; the answer."""
        with self.open(source, host, server_name) as made:
            made.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return made.recv(65536)


def read_all(made: socket.socket) -> bytes:
    """Everything until the end."""
    parts = []
    while part := made.recv(65536):
        parts.append(part)
    return b"".join(parts)
