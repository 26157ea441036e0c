"""The NetworkPolicies of a sandbox namespace."""

from collections.abc import Sequence
from typing import Final

from .. import names
from ..api.common import JSON
from ..plan.ranges import internet
from ..settings import Settings

SMTP_PORT: Final = 25
"""Mail from server to server, which takes no credentials."""


def network_policies(
    namespace: str, settings: Settings, ranges: Sequence[str] | None = None
) -> list[JSON]:
    """Deny everything in the namespace; then allow what each kind of pod may do.

    Nobody but the operator and workers reach :7443. A pod reaches what its label
    `cloister.dev/network` says: nothing, the egress gateways, or the internet without `ranges`,
    which are the cluster's own addresses. While they are not known (None) there is no policy that
    opens the internet.
    """
    made = [
        _policy(
            names.DENY_POLICY,
            namespace,
            {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        ),
        _policy(
            names.EXEC_POLICY,
            namespace,
            {
                "podSelector": {"matchLabels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": _callers(settings),
                        "ports": [{"protocol": "TCP", "port": names.EXEC_PORT}],
                    }
                ],
            },
        ),
        _egress(
            names.EGRESS_GATEWAY_POLICY, namespace, names.NETWORK_GATEWAY, [_gateway(settings)]
        ),
    ]
    if ranges is None and settings.egress_unrestricted:
        return made
    # A platform that forbids it closes what was open before.
    rules = _internet(ranges or (), settings) if settings.egress_unrestricted else []
    made.append(
        _egress(names.EGRESS_UNRESTRICTED_POLICY, namespace, names.NETWORK_UNRESTRICTED, rules)
    )
    return made


def _callers(settings: Settings) -> list[JSON]:
    return [
        _pods(settings.namespace, "operator"),
        *(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": each}}}
            for each in settings.worker_namespaces
        ),
    ]


def _gateway(settings: Settings) -> JSON:
    by_name = [names.EGRESS_BY_NAME_PORT] if settings.egress_by_name else []
    return {
        "to": [_pods(settings.namespace, names.EGRESS_COMPONENT)],
        "ports": [{"protocol": "TCP", "port": port} for port in (names.EGRESS_PORT, *by_name)],
    }


def _internet(ranges: Sequence[str], settings: Settings) -> list[JSON]:
    peers = internet(ranges)
    tcp: list[JSON] = [{"protocol": "TCP"}]
    if not settings.egress_smtp:
        # Who sends mail from the platform's addresses gets them onto everybody's block lists.
        tcp = [_tcp(1, SMTP_PORT - 1), _tcp(SMTP_PORT + 1, 65535)]
    # A rule without peers would be one for everybody.
    return [{"to": peers, "ports": [*tcp, {"protocol": "UDP"}]}] if peers else []


def _tcp(first: int, last: int) -> JSON:
    return {"protocol": "TCP", "port": first, "endPort": last}


def _pods(namespace: str, component: str) -> JSON:
    """One peer, which both selectors must select: two peers would be one or the other."""
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {names.COMPONENT_LABEL: component}},
    }


def _egress(name: str, namespace: str, network: str, rules: list[JSON]) -> JSON:
    return _policy(
        name,
        namespace,
        {
            "podSelector": {
                "matchLabels": {
                    names.MANAGED_BY_LABEL: names.MANAGED_BY,
                    names.NETWORK_LABEL: network,
                }
            },
            "policyTypes": ["Egress"],
            "egress": rules,
        },
    )


def _policy(name: str, namespace: str, spec: JSON) -> JSON:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "spec": spec,
    }
