"""The only package that dials exec servers.

Code in a sandbox owns the sandbox: whatever a pod answers is bounded, checked and cleaned here
(`answers`) before anything else of the operator sees it. `links` keeps the channels, `dialer` makes
the calls.
"""

from .answers import Activity, SandboxFailed, SandboxInfo, SandboxState, clean
from .dialer import ClaimPayload, Sandboxes
from .links import PodAddress

__all__ = [
    "Activity",
    "ClaimPayload",
    "PodAddress",
    "SandboxFailed",
    "SandboxInfo",
    "SandboxState",
    "Sandboxes",
    "clean",
]
