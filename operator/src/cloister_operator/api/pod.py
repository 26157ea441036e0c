"""What the operator reads of a sandbox pod."""

import json
from dataclasses import dataclass
from datetime import datetime

from .. import names
from . import conditions
from .common import JSON

Trouble = tuple[str, str]
"""A condition's reason and a sentence."""

_IMAGE_PROBLEMS = frozenset(
    {"ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"}
)
_WAITING_PROBLEMS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_OWN_DISK = ("exceeds the limit", "exceeds the total limit", "exceeded its local ephemeral")
"""How the kubelet words an eviction by the pod's own limits, in contrast to the node's need."""
_NODE_SHUTDOWN = frozenset({"NodeShutdown", "Shutdown", "Terminated"})
_DISRUPTIONS = {
    "DeletionByTaintManager": (
        conditions.NODE_LOST,
        "the pod's node does not answer, or was cleared of pods",
    ),
    "DeletionByPodGC": (conditions.NODE_LOST, "the pod's node is gone"),
    "EvictionByEvictionAPI": (conditions.EVICTED, "the pod was evicted, as when a node is drained"),
    "PreemptionByScheduler": (
        conditions.EVICTED,
        "the pod had to make room for one of a higher priority",
    ),
}
"""Reasons of the condition DisruptionTarget."""
_BY_KUBELET = "TerminationByKubelet"
"""The kubelet's own reason, of which the message says more. The condition stays when the exec
server ends in order, with code 0; then the kubelet forgets the status's reason, Evicted."""
_VOLUME_PROBLEMS = ("persistentvolumeclaim", "PersistentVolume", "binding volumes", "volume node")
"""How the scheduler words that a volume keeps a pod off the nodes."""


@dataclass(frozen=True)
class GitTree:
    """A repository's files in a pod: the directory, where they are from, the object id there."""

    path: str
    url: str
    commit: str


@dataclass(frozen=True, slots=True)
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
    end: Trouble | None
    """Why it ended: a condition's reason and a sentence."""
    trouble: Trouble | None
    """Why it does not start, though it may still: a condition's reason and a sentence."""
    claim: str = ""
    """The PersistentVolumeClaim with its workspace; empty where that ends with the pod."""
    disruption: Trouble | None = None
    """Why somebody takes it away, if they said so."""
    node: str = ""
    """Where it runs; empty before it was placed."""
    network: str = names.NETWORK_NONE
    """What NetworkPolicies allow it: `none`, `gateway` or `unrestricted`."""
    hosts: tuple[str, ...] = ()
    """What it may reach through the egress gateways."""
    own_users: bool = False
    """Whether it asked for a user namespace of its own."""
    trees: tuple[GitTree, ...] = ()
    """Repositories that it is given before it is warm."""
    identity: str = ""
    """The Secret that it mounts for its identity."""
    node_silent: bool = False
    """Whether its node is not heard of."""

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
        claim=_claim(raw.get("spec") or {}),
        disruption=_disruption(status),
        node=(raw.get("spec") or {}).get("nodeName") or "",
        network=labels.get(names.NETWORK_LABEL, names.NETWORK_NONE),
        hosts=_hosts(metadata),
        own_users=(raw.get("spec") or {}).get("hostUsers") is False,
        trees=_trees(metadata),
        identity=_identity(raw.get("spec") or {}) or metadata["name"],
        node_silent=_node_silent(status),
    )


def _trees(metadata: JSON) -> tuple[GitTree, ...]:
    given = (metadata.get("annotations") or {}).get(names.GIT_TREES)
    if not given:
        return ()
    try:
        return tuple(
            GitTree(str(each["path"]), str(each["url"]), str(each["commit"]))
            for each in json.loads(given)
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        # Somebody else's words: the pod never gets what it waits for, and is replaced.
        return ()


def _hosts(metadata: JSON) -> tuple[str, ...]:
    given: str = (metadata.get("annotations") or {}).get(names.EGRESS_HOSTS, "")
    return tuple(each for each in given.split(",") if each)


def _claim(spec: JSON) -> str:
    for volume in spec.get("volumes") or []:
        if volume["name"] == names.WORKSPACE_VOLUME and "persistentVolumeClaim" in volume:
            name: str = volume["persistentVolumeClaim"]["claimName"]
            return name
    return ""


def _identity(spec: JSON) -> str:
    for volume in spec.get("volumes") or []:
        if volume["name"] == names.IDENTITY_VOLUME and "secret" in volume:
            name: str = volume["secret"]["secretName"]
            return name
    return ""


def _node_silent(status: JSON) -> bool:
    """A kubelet says why a pod is not Ready; who says it in its place, because it is silent, gives
    no reason.
    """
    return any(
        each.get("type") == "Ready" and each.get("status") == "False" and not each.get("reason")
        for each in status.get("conditions") or []
    )


def _disruption(status: JSON) -> Trouble | None:
    for each in status.get("conditions") or []:
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True":
            if each.get("reason") == _BY_KUBELET:
                return _by_kubelet(each.get("message", ""))
            return _DISRUPTIONS.get(each.get("reason", ""))
    return None


def _by_kubelet(message: str) -> Trouble:
    if any(each in message for each in _OWN_DISK):
        return conditions.DISK_FULL, f"the pod wrote more to its disk than it may: {message}"
    if "node shutdown" in message:
        return conditions.NODE_LOST, f"the pod's node was shut down: {message}"
    return conditions.EVICTED, f"the pod was evicted: {message}"


def _end(status: JSON) -> Trouble | None:
    if status.get("phase") not in ("Failed", "Succeeded"):
        return None
    message = status.get("message", "")
    if status.get("reason") == "Evicted":
        return _by_kubelet(message)
    if status.get("reason") in _NODE_SHUTDOWN:
        return conditions.NODE_LOST, f"the pod's node was shut down: {message}"
    if status.get("reason") == "NodeLost":
        return conditions.NODE_LOST, f"the pod's node is gone: {message}"
    disrupted = _disruption(status)
    if disrupted:
        return disrupted
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("reason") == "OOMKilled":
            return conditions.OOM_KILLED, "the pod used more memory than spec.resources.memory"
        if ended:
            return conditions.POD_ENDED, f"the exec server ended with code {ended.get('exitCode')}"
    return conditions.POD_ENDED, f"the pod ended: {message or status['phase']}"


def _trouble(status: JSON) -> Trouble | None:
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_PROBLEMS:
            return conditions.IMAGE_PULL_FAILED, f"{reason}: {message}"
        if reason in _WAITING_PROBLEMS:
            return conditions.POD_FAILED, f"{reason}: {message}"
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("reason") == "Unschedulable":
            message = each.get("message", "")
            if any(word in message for word in _VOLUME_PROBLEMS):
                return conditions.VOLUME_NOT_BOUND, f"no volume for the workspace: {message}"
            return conditions.UNSCHEDULABLE, f"no node takes the pod: {message}"
    return None
