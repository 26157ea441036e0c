"""The NetworkPolicies of a sandbox namespace."""

from .. import names
from ..api.common import JSON
from ..settings import Settings


def network_policies(namespace: str, settings: Settings) -> list[JSON]:
    """Deny everything in the namespace; then let only the operator and workers reach :7443."""
    callers: list[JSON] = [
        {
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": settings.namespace}
            },
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
        },
        *(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": each}}}
            for each in settings.worker_namespaces
        ),
    ]
    exec_port = {"protocol": "TCP", "port": names.EXEC_PORT}
    return [
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
                "ingress": [{"from": callers, "ports": [exec_port]}],
            },
        ),
    ]


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
