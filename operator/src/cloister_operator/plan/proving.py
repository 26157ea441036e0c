"""What a sandbox of each kind must fail to reach, and what its tries prove."""

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .. import names
from ..api.common import JSON

MAX_TARGETS = 16
"""What an exec server tries at once."""
_FEW = 2
"""Of each kind, so that no kind keeps others out."""
METADATA = (
    "169.254.169.254:80",
    "168.63.129.16:80",
    "100.100.100.200:80",
    "192.0.0.192:80",
    "[fd00:ec2::254]:80",
    "[fd20:ce::254]:80",
    "169.254.169.252:988",
)
"""The metadata services of clouds, the last of which is an agent's that stands in for one."""
API, DNS, GATEWAY, INTERNET, NODE, SANDBOX, METADATA_SERVICE = (
    "api",
    "dns",
    "gateway",
    "internet",
    "node",
    "sandbox",
    "metadata",
)
_OUTSIDE = (INTERNET, METADATA_SERVICE)
_SYSTEM = ("kube-system", "openshift-dns")
"""Namespaces of the cluster's DNS: whoever may make a Service elsewhere must not name a target."""
_CALLED = {
    API: "API servers",
    DNS: "the cluster's DNS",
    GATEWAY: "egress gateways",
    INTERNET: "the internet",
    NODE: "nodes",
    METADATA_SERVICE: "metadata services",
}


@dataclass(frozen=True, order=True)
class Landmark:
    """Something in the cluster that listens, and that no sandbox may reach."""

    kind: str
    address: str
    """host:port; a literal address."""
    node: str = ""
    """Whose it is, of kind `node`."""


def of_node(node: JSON) -> frozenset[Landmark]:
    """A node's kubelet."""
    status = node.get("status") or {}
    endpoints = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    port = endpoints.get("Port") or 10250
    inside = [
        each.get("address")
        for each in status.get("addresses") or []
        if each.get("type") == "InternalIP"
    ]
    name = node["metadata"]["name"]
    return frozenset(Landmark(NODE, made, name) for each in inside if (made := _joined(each, port)))


def of_service(service: JSON) -> frozenset[Landmark]:
    """The cluster's DNS server, if it is one: what of the system listens on its port."""
    if (service.get("metadata") or {}).get("namespace") not in _SYSTEM:
        return frozenset()
    spec = service.get("spec") or {}
    ports = {(each.get("protocol", "TCP"), each.get("port")) for each in spec.get("ports") or []}
    made = _joined(spec.get("clusterIP"), 53)
    return frozenset({Landmark(DNS, made)} if ("TCP", 53) in ports and made else ())


def of_endpoint_slice(found: JSON) -> frozenset[Landmark]:
    """The API servers themselves, behind their Service."""
    return frozenset(
        Landmark(API, made)
        for port in found.get("ports") or []
        for one in found.get("endpoints") or []
        for each in one.get("addresses") or []
        if (made := _joined(each, port.get("port")))
    )


def _joined(host: object, port: object) -> str:
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return ""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True)
class Site:
    """What is known of the cluster that sandboxes must not reach."""

    controls: tuple[str, ...]
    """host:port that the operator reached itself before it began: API server and operator."""
    landmarks: tuple[Landmark, ...] = ()
    gateway: str = ""
    """host:port of the egress gateways, if there are some."""
    nameservers: tuple[str, ...] = ()
    """Addresses on the internet."""
    skipped: tuple[str, ...] = ()
    """Kinds that the platform leaves out."""


def landmarks(site: Site) -> tuple[Landmark, ...]:
    """Everything that may be a target, each with its kind; without other sandboxes."""
    found = [*sorted(site.landmarks), *(Landmark(METADATA_SERVICE, each) for each in METADATA)]
    if site.gateway:
        found.append(Landmark(GATEWAY, site.gateway))
    for each in site.nameservers[:1]:
        if made := _joined(each, 53):
            found.append(Landmark(INTERNET, made))
    return tuple(each for each in found if each.kind not in site.skipped)


def targets(
    site: Site,
    network: str,
    node: str = "",
    others: Sequence[str] = (),
    *,
    brief: bool = False,
) -> list[str]:
    """What a pod is to try, most telling first.

    Args:
        site: The cluster.
        network: The kind of the pod: `none`, `gateway` or `unrestricted`.
        node: Where it runs: its own node's kubelet is tried before that of another.
        others: host:port of other sandboxes.
        brief: Only whether policies cover this pod, where others have tried everything: Linux
            tells one address of six refusals at once, and then of one a second (icmp(7),
            icmp_ratelimit), for which a start would wait.
    """
    allowed = {
        names.NETWORK_GATEWAY: {GATEWAY},
        names.NETWORK_UNRESTRICTED: {INTERNET},
    }.get(network, set())
    known = [each for each in landmarks(site) if each.kind not in allowed]
    # Metadata services come last: where there are two of all else, their last ones are more than
    # is tried at once, and of no other kind is anything left out.
    known.sort(
        key=lambda each: (each.kind == METADATA_SERVICE, each.kind == NODE and each.node != node)
    )
    counts: dict[str, int] = {}
    found = list(site.controls)
    if SANDBOX not in site.skipped:
        found += others[:1]
    for each in known:
        if brief and (each.kind not in _OUTSIDE or each.kind in counts):
            continue
        counts[each.kind] = counts.get(each.kind, 0) + 1
        if each.kind == METADATA_SERVICE or counts[each.kind] <= _FEW:
            found.append(each.address)
    return list(dict.fromkeys(found))[:MAX_TARGETS]


def message(site: Site, network: str, alive: Collection[str]) -> str:
    """What pods of a kind have proven by reaching nothing.

    It names no pod and no target of one pod's own: each new word would be a write for every
    Environment. What nobody is known to reach proves nothing and is not named.

    Args:
        site: The cluster.
        network: The kind of the pods.
        alive: host:port that the operator reached itself, beside the site's controls.
    """
    tried = set(targets(site, network))
    kinds = {
        each.kind for each in landmarks(site) if each.address in alive and each.address in tried
    }
    told = [*site.controls, *sorted(_CALLED[each] for each in kinds)]
    return f"pods of this namespace tried to reach {', '.join(told)} and could not"


def refutation(pod: str, reached: Iterable[str], policy: str) -> str:
    """What a pod has refuted by reaching something."""
    return (
        f"pod {pod} reached {', '.join(reached)} in spite of the NetworkPolicy {policy}: this "
        "cluster's network plugin does not enforce it, or is down; no session is given until it "
        "does"
    )


def has_user_namespace(uid_map: str) -> bool:
    """Whether users inside are others outside, by what a new pod reads in its own uid_map.

    Nothing that can be read, as of an exec server that does not tell, is no.
    """
    lines = [each.split() for each in uid_map.splitlines() if each.strip()]
    try:
        ranges = [(int(inside), int(outside), int(size)) for inside, outside, size in lines]
    except ValueError:
        return False
    return bool(ranges) and all(
        size > 0 and outside > 0 and inside != outside for inside, outside, size in ranges
    )
