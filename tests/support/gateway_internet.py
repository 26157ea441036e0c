"""An internet of our own: its servers, its DNS, and what they saw."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from support.certificates import TestAuthority
from support.gateway_addresses import NAME_SERVER, TIMEOUT
from support.netns import Netns
from support.websocket_frames import PING, PONG, accepted, frame, unpacked

Answers = Sequence[str] | Callable[[int], Sequence[str]]


@dataclass
class Seen:
    """What a server of the internet saw."""

    address: str
    port: int
    server_name: str = ""
    first: bytes = b""
    headers: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


class Internet:
    """Servers on every address and a few ports: HTTPS on 443, else what comes is answered."""

    PORTS = (22, 80, 443, 8443)

    def __init__(
        self, space: Netns, authority: TestAuthority, folder: Path, ports: Sequence[int]
    ) -> None:
        self.space = space
        self.queries: list[str] = []
        self.names: dict[str, Answers] = {}
        self.seen: list[Seen] = []
        pair = authority.issue(dns="*.test")
        (folder / "server.pem").write_bytes(pair.private_key + pair.certificate)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / "server.pem")
        self._tls.set_servername_callback(self._named)
        self._asked: dict[str, int] = {}
        self._for_ever = asyncio.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._servers: list[Any] = []
        for port in ports:
            made = space.call(lambda port=port: _listener(port))  # type: ignore[misc]
            self._servers.append(self.do(self._serve(made, port)))
        self._names = space.call(_name_server)
        self.loop.call_soon_threadsafe(self.loop.add_reader, self._names, self._answer)

    def do(self, coroutine: Any) -> Any:
        """Run a coroutine on the internet's own loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    def forget(self) -> None:
        """Forget what was seen and asked."""
        self.queries.clear()
        self.seen.clear()
        self._asked.clear()

    def close(self) -> None:
        """End all servers."""

        async def end() -> None:
            self.loop.remove_reader(self._names)
            for each in self._servers:
                each.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.do(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._names.close()

    async def _serve(self, made: socket.socket, port: int) -> asyncio.Server:
        tls = self._tls if port == 443 else None
        return await asyncio.start_server(self._handle, sock=made, ssl=tls)

    @staticmethod
    def _named(connection: Any, name: str | None, _: Any) -> None:
        connection.server_name = name or ""

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each line or request; a path that is a number is answered with that many bytes.

        Who asks for /stuck is neither read from nor answered any more, and what is sent to /sink is
        read and not answered.
        """
        address, port = writer.get_extra_info("sockname")[:2]
        tls = writer.get_extra_info("ssl_object")
        seen = Seen(str(address).removeprefix("::ffff:"), port, getattr(tls, "server_name", ""))
        self.seen.append(seen)
        key = ""
        try:
            while line := await reader.readline():
                seen.first = seen.first or line
                words = line.split()
                if len(words) == 3 and words[2].startswith(b"HTTP/"):
                    while (header := await reader.readline()) not in (b"\r\n", b""):
                        seen.headers.append(header.lower())
                        if tls and header.lower().startswith(b"sec-websocket-key:"):
                            key = header.split()[1].decode()
                    if key:
                        await self._messages(reader, writer, key)
                        break
                    path = words[1].rpartition(b"/")[2]
                    if path == b"stuck":
                        await self._for_ever.wait()
                    if path == b"sink":
                        while await reader.read(1 << 20):
                            pass
                    body = b"x" * int(path) if path.isdigit() else b"hello\n"
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                    writer.write(head.encode() + body)
                else:
                    writer.write(b"echo " + line)
                await writer.drain()
        except (OSError, ValueError, ssl.SSLError):
            pass
        finally:
            seen.ended.set()
            writer.close()

    @staticmethod
    async def _messages(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str
    ) -> None:
        """A WebSocket: asks for a sign of life unasked, and answers each message turned around."""
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Sec-WebSocket-Accept: {accepted(key)}\r\n\r\n".encode())
        writer.write(frame(b"there?", PING))
        await writer.drain()
        held = b""
        while more := await reader.read(65536):
            held += more
            while message := unpacked(held):
                kind, payload, held = message
                writer.write(frame(payload if kind == PONG else payload[::-1]))
                await writer.drain()

    def _answer(self) -> None:
        data, peer = self._names.recvfrom(4096)
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries.append(name)
        known = self.names.get(name)
        if callable(known):
            times = self._asked[name] = self._asked.get(name, -1) + 1
            known = known(times)
        if known is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            kind = question.rdtype
            colon = kind == dns.rdatatype.AAAA
            found = [each for each in known if (":" in each) == colon]
            if found and kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
                response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *found))
        self._names.sendto(response.to_wire(), peer)


def _listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(512)
    return made


def _name_server() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((NAME_SERVER, 53))
    return made
