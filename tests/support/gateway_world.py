"""A gateway pod between two sandboxes' side and an internet of our own, all in namespaces."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import grpc

from cloister_api.egress.v1 import egress_pb2, egress_pb2_grpc
from support.certificates import TestAuthority
from support.gateway_rig import PARTS, Pod, until
from support.netns import Netns, join
from support.websocket_frames import PING, PONG, accepted, frame, unpacked

GATEWAY, GATEWAY6 = "10.90.0.1", "fd90::1"
SERVER, SERVER6, ATTACKER = "151.101.0.10", "2a04:4e42::10", "151.101.0.66"
NAME_SERVER = "151.101.0.53"
PRIVATE, METADATA, CLUSTER = "10.66.0.5", "169.254.169.254", "151.101.7.7"
OTHER_CLUSTER = "151.101.9.9"
INNER6 = ("64:ff9b::a9fe:a9fe", "fd00:ec2::254", "2002:a42:5::1", "2001:0:a42:5::1")
OPERATOR = "operator:cloister"
TIMEOUT = 10.0
START = 120.0
"""Five programs, on a machine that does much else."""
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
        """Answer each line or request; a path that is a number is answered with that many bytes."""
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


class Client:
    """What code in a sandbox does; `source` is its pod's address."""

    def __init__(self, space: Netns, ca: bytes) -> None:
        self.space = space
        self.tls = ssl.create_default_context(cadata=ca.decode())
        # Which name was asked for is seen at the server; one certificate is for all.
        self.tls.check_hostname = False

    def connect(self, source: str, port: int = 3128) -> socket.socket:
        """A connection to the gateway: to the proxy, or to 443 as a client that knows of none."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        target = GATEWAY6 if ":" in source else GATEWAY

        def dial() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.settimeout(TIMEOUT)
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


class Operator:
    """Tells the agent what the operator would."""

    def __init__(self, space: Netns, authority: TestAuthority, uri: str = OPERATOR) -> None:
        pair = authority.issue(uri=uri)
        self._relay = _Relay(space, 7444)
        credentials = grpc.ssl_channel_credentials(
            authority.pem, pair.private_key, pair.certificate
        )
        self.channel = grpc.secure_channel(
            f"127.0.0.1:{self._relay.port}",
            credentials,
            [
                ("grpc.ssl_target_name_override", "cloister-egress-gateway"),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.initial_reconnect_backoff_ms", 50),
            ],
        )
        self.stub = egress_pb2_grpc.EgressGatewayStub(self.channel)
        self.term, self.revision = 1, 0

    def apply(
        self,
        sources: Mapping[str, str],
        policies: Mapping[str, Sequence[str]],
        denied: Sequence[str] = (CLUSTER + "/32",),
        version: tuple[int, int] | None = None,
    ) -> egress_pb2.ApplyResponse:
        """Tell a whole state; sources are address -> policy; see `pod_uid`."""
        self.revision += 1
        term, revision = version or (self.term, self.revision)
        request = egress_pb2.ApplyRequest(
            term=term,
            revision=revision,
            policies=[egress_pb2.Policy(id=key, hosts=each) for key, each in policies.items()],
            sources=[
                egress_pb2.Source(address=key, policy_id=each, pod_uid=pod_uid(key))
                for key, each in sources.items()
            ],
            denied_ranges=denied,
        )
        return self.stub.Apply(request, timeout=TIMEOUT, wait_for_ready=True)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
        self._relay.close()


def pod_uid(address: str) -> str:
    """The uid of the pod that has an address in these tests."""
    return "pod-" + address.replace(".", "-").replace(":", "-")


class _Relay:
    """A loopback port of ours that leads to one in a namespace."""

    def __init__(self, space: Netns, port: int) -> None:
        self._space = space
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._space.call(
                    lambda: socket.create_connection(("127.0.0.1", self._target), TIMEOUT)
                )
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and what runs through it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@dataclass
class World:
    """All of it together."""

    pod: Pod
    internet: Internet
    client: Client
    operator: Operator
    authority: TestAuthority
    space: Netns

    def ready(self) -> bool:
        """Whether the pod says that it is ready."""
        return " 200 " in self.http("/readyz")

    def http(self, path: str) -> str:
        """The head and body of an answer of the agent's HTTP port; "" when it is not there."""

        def ask() -> str:
            with socket.create_connection(("127.0.0.1", 8081), TIMEOUT) as made:
                made.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return read_all(made).decode()

        try:
            return self.space.call(ask)
        except OSError:
            return ""


@contextlib.contextmanager
def world(
    folder: Path,
    settings: dict[str, str] | None = None,
    ports: Sequence[int] = Internet.PORTS,
) -> Iterator[World]:
    """A world with a gateway that has started and knows nobody yet; servers are on `ports`."""
    with contextlib.ExitStack() as stack:
        sandboxes, gateway, outside = (stack.enter_context(Netns()) for _ in range(3))
        _cable(sandboxes, gateway, outside)
        authority = TestAuthority()
        internet = Internet(outside, authority, folder, ports)
        stack.callback(internet.close)
        pod = Pod(gateway, folder / "pod", f"nameserver {NAME_SERVER}\n", settings)
        stack.callback(pod.stop)
        pair = authority.issue(dns="cloister-egress-gateway")
        for name, content in (
            ("tls.crt", pair.certificate),
            ("tls.key", pair.private_key),
            ("ca.crt", authority.pem),
        ):
            (folder / "pod" / "identity" / name).write_bytes(content)
        pod.start_all()
        operator = Operator(gateway, authority)
        stack.callback(operator.close)
        made = World(pod, internet, Client(sandboxes, authority.pem), operator, authority, gateway)
        try:
            up = "these parts"
            until(lambda: up not in (said := made.http("/readyz")) and said, "the start", START)
            operator.apply({}, {})
            until(made.ready, "readiness", START)
        except BaseException:
            print(made.http("/readyz"), made.http("/metrics")[-400:])
            for part in PARTS:
                print(f"--- {part}\n{pod.log(part)[-3000:]}")
            raise
        yield made


def _cable(sandboxes: Netns, gateway: Netns, outside: Netns) -> None:
    join(sandboxes, "eth0", gateway, "in0")
    join(gateway, "out0", outside, "eth0")
    for each in (sandboxes, gateway, outside):
        each.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0")
    gateway.run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "in0")
    gateway.run("ip", "addr", "add", f"{GATEWAY6}/64", "dev", "in0", "nodad")
    sandboxes.run("sh", "-ec", "for i in $(seq 11 60); do ip addr add 10.90.0.$i/24 dev eth0; done")
    sandboxes.run("ip", "addr", "add", "fd90::11/64", "dev", "eth0", "nodad")
    # Private addresses lead to the internet's namespace too, and servers answer there: what keeps a
    # sandbox from them here is the gateway alone.
    gateway.run("ip", "addr", "add", "151.101.0.2/24", "dev", "out0")
    gateway.run("ip", "route", "add", "default", "via", SERVER)
    gateway.run("ip", "addr", "add", "2a04:4e42::2/64", "dev", "out0", "nodad")
    gateway.run("ip", "route", "add", "default", "via", SERVER6)
    for address in (SERVER, ATTACKER, NAME_SERVER):
        outside.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
    outside.run("ip", "addr", "add", f"{SERVER6}/64", "dev", "eth0", "nodad")
    outside.run("ip", "route", "add", "default", "via", "151.101.0.2")
    for address in (PRIVATE, METADATA, CLUSTER, OTHER_CLUSTER, *INNER6):
        bits = 128 if ":" in address else 32
        outside.run("ip", "addr", "add", f"{address}/{bits}", "dev", "lo")
