"""What the operator makes for the egress gateways: their certificate, and their way out."""

import base64
from collections.abc import Sequence

from .. import names
from ..api.common import JSON
from ..identity import Identity
from ..plan.ranges import internet
from ..settings import Settings

_LABELS = {
    names.MANAGED_BY_LABEL: names.MANAGED_BY,
    names.COMPONENT_LABEL: names.EGRESS_COMPONENT,
}


def gateway_secret(settings: Settings, identity: Identity) -> JSON:
    """The Secret that the gateways' agents mount."""
    data = {
        "tls.crt": identity.certificate_pem,
        "tls.key": identity.private_key_pem,
        "ca.crt": identity.ca_pem,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.EGRESS_GATEWAY,
            "namespace": settings.namespace,
            "labels": dict(_LABELS),
        },
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def gateway_internet(settings: Settings, ranges: Sequence[str]) -> JSON:
    """The NetworkPolicy that lets gateways reach the internet, and nothing of the cluster's own.

    A gateway that is wrong about an address, or is led astray, gets no further than this.
    """
    peers = internet(ranges)
    ports = [{"protocol": "TCP", "port": port} for port in (80, 443)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.EGRESS_GATEWAY_INTERNET,
            "namespace": settings.namespace,
            "labels": dict(_LABELS),
        },
        "spec": {
            "podSelector": {
                "matchLabels": {
                    "app.kubernetes.io/name": "cloister",
                    names.COMPONENT_LABEL: names.EGRESS_COMPONENT,
                }
            },
            "policyTypes": ["Egress"],
            # A rule without peers would be one for everybody.
            "egress": [{"to": peers, "ports": ports}] if peers else [],
        },
    }
