"""What the sandboxes of an Environment may reach: nothing, hosts by name, or the internet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .. import names
from ..api import conditions
from ..api.environment import Networking
from ..api.hosts import MAX_HOSTS, host, of_url
from ..errors import PermanentError

_WHERE = "spec.networking"


@dataclass(frozen=True)
class Reach:
    """What pods of a recipe may reach: the kind that NetworkPolicies select, and the hosts."""

    network: str = names.NETWORK_NONE
    hosts: tuple[str, ...] = ()
    """Sorted, each once; only with the network `gateway`."""


@dataclass(frozen=True)
class Aliases:
    """Names that a pod's /etc/hosts leads to one address."""

    address: str
    hosts: tuple[str, ...]


def by_name(reach: Reach, gateway: str) -> Aliases | None:
    """What leads tools that know of no proxy to the gateways: the hosts that are allowed by their
    whole names. Those below a wildcard are not known, and no resolver is there to ask.

    Args:
        reach: What the pods may reach.
        gateway: host:port of the gateways' proxy; empty where there is none.

    Returns:
        None when there is no such host.
    """
    hosts = tuple(each for each in reach.hosts if not each.startswith("*."))
    if not hosts or not gateway or reach.network != names.NETWORK_GATEWAY:
        return None
    return Aliases(gateway.rpartition(":")[0].strip("[]"), hosts)


def gateway_ways(gateway: str, *, by_name: bool) -> list[str]:
    """host:port that pods with the network `gateway` must reach; none without `gateway`."""
    direct = f"{gateway.rpartition(':')[0]}:{names.EGRESS_BY_NAME_PORT}"
    return [gateway, *([direct] if by_name else [])] if gateway else []


def reach(
    networking: Networking,
    package_hosts: Iterable[str] = (),
    cluster_domain: str = "cluster.local",
) -> Reach:
    """What an Environment allows its sandboxes.

    Args:
        networking: The Environment's `spec.networking`.
        package_hosts: Hosts of the image's package managers, or of the platform's mirrors; they
            count where the Environment allows package managers.
        cluster_domain: The cluster's own domain, in which no name is accepted.

    Raises:
        PermanentError: A name is refused, or there are too many; names the field.
    """
    asked = asked_hosts(networking, cluster_domain)
    if networking.type == "unrestricted":
        return Reach(names.NETWORK_UNRESTRICTED)
    found = set(asked)
    if networking.allow_package_managers:
        found.update(package_hosts)
    if len(found) > MAX_HOSTS:
        raise PermanentError(
            conditions.INVALID_SPEC,
            f"there are {len(found)} hosts in all, with those of MCP servers and package managers; "
            f"at most {MAX_HOSTS} can be allowed",
            f"{_WHERE}.allowedHosts",
        )
    hosts = without_covered(found)
    return Reach(names.NETWORK_GATEWAY if hosts else names.NETWORK_NONE, hosts)


def asked_hosts(networking: Networking, cluster_domain: str = "cluster.local") -> tuple[str, ...]:
    """The hosts that the spec itself names; raises PermanentError that names the field."""
    found = [
        host(each, f"{_WHERE}.allowedHosts[{index}]", cluster_domain)
        for index, each in enumerate(networking.allowed_hosts)
    ]
    servers = [
        of_url(each, f"{_WHERE}.mcpServers[{index}]", cluster_domain)
        for index, each in enumerate(networking.mcp_servers)
    ]
    if networking.allow_mcp_servers:
        found += servers
    return tuple(found)


def without_covered(hosts: Iterable[str]) -> tuple[str, ...]:
    """The same hosts, sorted, without those that a wildcard among them covers."""
    every = set(hosts)
    wildcards = {each[2:] for each in every if each.startswith("*.")}
    return tuple(sorted(each for each in every if not _covered(each, wildcards)))


def _covered(given: str, wildcards: set[str]) -> bool:
    labels: Sequence[str] = given.removeprefix("*.").split(".")
    return any(".".join(labels[index:]) in wildcards for index in range(1, len(labels)))
