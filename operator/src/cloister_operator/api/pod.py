"""What the operator reads of a sandbox pod."""

from dataclasses import dataclass
from datetime import datetime

from .. import names
from . import conditions
from .common import JSON

_WAITING_PROBLEMS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


@dataclass(frozen=True)
class PodView:
    """A sandbox pod."""

    namespace: str
    name: str
    uid: str
    resource_version: int
    created: datetime
    environment: str
    recipe: str
    state: str
    session_uid: str
    session_name: str
    ip: str
    phase: str
    deleting: bool
    end: tuple[str, str] | None
    """Why it ended: a condition's reason and a sentence."""
    trouble: tuple[str, str] | None
    """Why it does not start, though it may still: a condition's reason and a sentence."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def alive(self) -> bool:
        """Neither ended nor being deleted."""
        return not self.deleting and self.end is None


def view(raw: JSON) -> PodView:
    """Read a pod as the API server has it."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    labels = metadata.get("labels") or {}
    owners = metadata.get("ownerReferences") or []
    session = next((each for each in owners if each["kind"] == names.SESSION_KIND), None)
    return PodView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=int(metadata["resourceVersion"]),
        created=conditions.parse_time(metadata["creationTimestamp"]),
        environment=labels.get(names.ENVIRONMENT_LABEL, ""),
        recipe=labels.get(names.RECIPE_LABEL, ""),
        state=labels.get(names.STATE_LABEL, ""),
        session_uid=labels.get(names.SESSION_LABEL, ""),
        session_name=session["name"] if session else "",
        ip=status.get("podIP") or "",
        phase=status.get("phase") or "Pending",
        deleting="deletionTimestamp" in metadata,
        end=_end(status),
        trouble=_trouble(status),
    )


def _end(status: JSON) -> tuple[str, str] | None:
    if status.get("phase") not in ("Failed", "Succeeded"):
        return None
    if status.get("reason") == "Evicted":
        return conditions.EVICTED, f"the pod was evicted: {status.get('message', '')}"
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("reason") == "OOMKilled":
            return conditions.OOM_KILLED, "the pod used more memory than spec.resources.memory"
        if ended:
            return conditions.POD_ENDED, f"the exec server ended with code {ended.get('exitCode')}"
    return conditions.POD_ENDED, f"the pod ended: {status.get('message') or status['phase']}"


def _trouble(status: JSON) -> tuple[str, str] | None:
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") in _WAITING_PROBLEMS:
            return conditions.POD_FAILED, f"{waiting['reason']}: {waiting.get('message', '')}"
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("reason") == "Unschedulable":
            return conditions.UNSCHEDULABLE, f"no node takes the pod: {each.get('message', '')}"
    return None
