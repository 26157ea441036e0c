"""A gateway pod between two sandboxes' side and an internet of our own, all in namespaces."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.certificates import TestAuthority
from support.gateway_addresses import (
    ATTACKER,
    CLUSTER,
    GATEWAY,
    GATEWAY6,
    INNER6,
    METADATA,
    NAME_SERVER,
    OTHER_CLUSTER,
    PRIVATE,
    SERVER,
    SERVER6,
    TIMEOUT,
)
from support.gateway_client import Client, read_all
from support.gateway_internet import Internet
from support.gateway_operator import Operator
from support.gateway_rig import PARTS, Pod, until
from support.netns import Netns, join

START = 120.0
"""Seconds for five programs, on a machine that does much else."""


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
