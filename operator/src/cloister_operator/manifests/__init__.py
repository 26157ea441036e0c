"""Objects that the operator makes, rendered from typed input. Nothing here talks to anybody."""

from .pods import KEPT, SandboxPod, pod_reference, sandbox_pod, workspace_claim
from .policies import network_policies
from .secrets import ca_secret, client_config, credentials_secret, identity_secret, recipe_secret

__all__ = [
    "KEPT",
    "SandboxPod",
    "ca_secret",
    "client_config",
    "credentials_secret",
    "identity_secret",
    "network_policies",
    "pod_reference",
    "recipe_secret",
    "sandbox_pod",
    "workspace_claim",
]
