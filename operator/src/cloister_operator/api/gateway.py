"""What the operator reads of an egress gateway's pod."""

from dataclasses import dataclass
from datetime import datetime

from . import conditions
from .common import JSON

AGENT: str = "agent"
"""The container that takes states."""


@dataclass(frozen=True)
class GatewayPod:
    """An egress gateway's pod."""

    namespace: str
    name: str
    uid: str
    created: datetime
    ip: str
    ready: bool
    """Sandboxes are led to it."""
    ended: bool
    """It never runs again."""
    gone_at: datetime | None
    """When the kubelet has ended it at the latest, if it is being deleted."""
    agent_ran: bool
    """Its agent runs, or has run: it may hold a state."""
    restarts: int
    """Of its agent."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name


def gateway_view(raw: JSON) -> GatewayPod:
    """Read a pod as the API server has it."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    agent: JSON = next(
        (each for each in status.get("containerStatuses") or [] if each.get("name") == AGENT), {}
    )
    restarts = int(agent.get("restartCount") or 0)
    state = agent.get("state") or {}
    deleted = metadata.get("deletionTimestamp")
    return GatewayPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        created=conditions.parse_time(metadata["creationTimestamp"]),
        ip=status.get("podIP") or "",
        ready=any(
            each.get("type") == "Ready" and each.get("status") == "True"
            for each in status.get("conditions") or []
        ),
        ended=status.get("phase") in ("Failed", "Succeeded"),
        gone_at=conditions.parse_time(deleted) if deleted else None,
        agent_ran=restarts > 0 or "running" in state or "terminated" in state,
        restarts=restarts,
    )
