"""Every name that the operator gives or reads: labels, ports, objects, TLS names."""

from typing import Final

GROUP: Final = "cloister.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
ENVIRONMENT_KIND: Final = "Environment"
SESSION_KIND: Final = "Session"
ENVIRONMENTS: Final = "environments"
SESSIONS: Final = "sessions"

FIELD_MANAGER: Final = "cloister-operator"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "cloister"
ENVIRONMENT_LABEL: Final = f"{GROUP}/environment"
RECIPE_LABEL: Final = f"{GROUP}/recipe"
STATE_LABEL: Final = f"{GROUP}/state"
SESSION_LABEL: Final = f"{GROUP}/session"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"

NAMESPACE_LIMIT: Final = "sessions.maxPerNamespace"
"""The chart's value that limits the sessions of a namespace, as messages and errors name it."""

STATE_STARTING: Final = "starting"
STATE_WARM: Final = "warm"
STATE_CLAIMED: Final = "claimed"

NETWORK_LABEL: Final = f"{GROUP}/network"
"""Of a sandbox pod, by which the NetworkPolicies select it; without it there is no way out."""
NETWORK_NONE: Final = "none"
NETWORK_GATEWAY: Final = "gateway"
NETWORK_UNRESTRICTED: Final = "unrestricted"
EGRESS_HOSTS: Final = f"{GROUP}/egress-hosts"
"""Annotation of a pod with the network `gateway`: the hosts it may reach, joined by commas. What a
pod may reach is what its recipe said when it was made, and whoever leads next reads it here."""

SANDBOXES_LABEL: Final = f"{GROUP}/sandboxes"
"""The platform's label, with value `enabled`, on a namespace that takes part."""
ALLOW_LABEL: Final = f"{GROUP}/allow-in-sandbox"
"""The platform's label, with value `true`, on Secrets and ConfigMaps that Environments may name."""
GIT_LABEL: Final = f"{GROUP}/git"
"""The platform's label, with value `true`, on Secrets with which the operator fetches repositories;
none of them reaches a sandbox."""
GIT_URLS: Final = f"{GROUP}/git-urls"
"""The platform's annotation of such a Secret: beginnings of the URLs it is for, with commas."""
GIT_TREES: Final = f"{GROUP}/git-trees"
"""Annotation of a sandbox pod: the repositories that it is given before it is warm, as JSON."""
ISSUED_BY: Final = f"{GROUP}/issued-by"
"""Annotation of a Session made through the Sessions API: its caller got the credentials there."""
ISSUED_BY_API: Final = "sessions-api"
IDLE: Final = f"{GROUP}/suspended-when-idle"
"""Annotation of a Session that the operator, and nobody else, asked to suspend: the generation that
its doing so made. Any later change of the spec makes it void."""
REQUEST: Final = f"{GROUP}/request"
"""Annotation with a digest of the call that made a Session: the same call again finds it."""
REQUEST_ID: Final = f"{GROUP}/request-id"
"""Annotation with a digest of the caller and the call's request id: one Session for each."""

FIRST_POD: Final = f"{GROUP}/first-pod"
"""Annotation of a Session made through the Sessions API: the warm pod that it was made for. Whoever
looks after the Session claims that one before any other."""

EXEC_PORT: Final = 7443
SESSIONS_PORT: Final = 8443
HTTP_PORT: Final = 8080
EGRESS_PORT: Final = 3128
"""Of egress gateways, for sandboxes."""
EGRESS_BY_NAME_PORT: Final = 443
"""Of egress gateways, for tools in sandboxes that know of no proxy."""
EGRESS_AGENT_PORT: Final = 7444
"""Of egress gateways, for the operator."""
EGRESS_GATEWAY: Final = "cloister-egress-gateway"
"""The Service and Secret of the egress gateways, and the name that their certificate proves."""
EGRESS_GATEWAY_INTERNET: Final = f"{EGRESS_GATEWAY}-internet"
"""The NetworkPolicy of the egress gateways' own way out."""
EGRESS_COMPONENT: Final = "egress-gateway"
"""The component that labels the pods of egress gateways."""

CA_SECRET: Final = "cloister-ca"  # noqa: S105 - the name of a Secret
ROTATE_CA: Final = f"{GROUP}/rotate-ca"
"""The platform's annotation of that Secret: another value than before asks for a new CA."""
CLIENT_CONFIG: Final = "cloister-client-config"
LEASE: Final = "cloister-operator"
LEADER_ADDRESS: Final = f"{GROUP}/sessions-address"
"""Annotation of the Lease: host:port of the leader's Sessions API."""
DENY_POLICY: Final = "cloister-default-deny"
EXEC_POLICY: Final = "cloister-exec-ingress"
EGRESS_GATEWAY_POLICY: Final = "cloister-egress-gateway"
EGRESS_UNRESTRICTED_POLICY: Final = "cloister-egress-unrestricted"
SESSIONS_SERVER_NAME: Final = "sessions.cloister.dev"
OPERATOR_URI: Final = "operator:cloister"

CONTAINER: Final = "sandbox"
WORKSPACE_VOLUME: Final = "workspace"
IDENTITY_VOLUME: Final = "identity"


def pod_server_name(pod_uid: str) -> str:
    """The TLS name that an exec server shows before its pod is claimed."""
    return f"pod-{pod_uid}.sandbox.cloister.dev"


def session_server_name(session_uid: str) -> str:
    """The TLS name that an exec server shows once its pod is claimed."""
    return f"session-{session_uid}.sandbox.cloister.dev"


def session_uri(session_uid: str) -> str:
    """The URI in the certificate of a session's worker."""
    return f"session:{session_uid}"


def recipe_secret(environment: str, recipe_hash: str) -> str:
    """The Secret that carries one resolved version of an Environment."""
    return f"{environment}-{recipe_hash}"


def workspace_claim(session: str, session_uid: str) -> str:
    """The PersistentVolumeClaim of a session whose pod is not one of the pool's.

    By the UID, so that a session of the same name, made later, gets an empty one.
    """
    return f"{session}-{session_uid[:8]}"


def credentials_secret(session: str) -> str:
    """The Secret with the client certificate of a Session made with kubectl."""
    return f"{session}-credentials"


def joined(host: str, port: str | int) -> str:
    """An address as clients dial it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
