"""Conditions of Environments and Sessions: their reasons, and how a list of them is updated.

Every False condition's message is a sentence that a person can act on.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

from .common import Condition

READY: Final = "Ready"
POOL_READY: Final = "PoolReady"
NETWORK_ENFORCED: Final = "NetworkEnforced"
ADMISSION_ENFORCED: Final = "AdmissionEnforced"
GIT_FETCHED: Final = "GitFetched"
"""Of Environments with git repositories among their files."""
SUSPENDED: Final = "Suspended"
"""Of Sessions, and the reason of one that its user suspended."""

# Of Environments.
AVAILABLE: Final = "Available"
"""Sessions can be claimed."""
NAMESPACE_NOT_ENABLED: Final = "NamespaceNotEnabled"
"""The platform has not opened this namespace for sandboxes."""
INVALID_SPEC: Final = "InvalidSpec"
"""A field is wrong in a way that the schema cannot see."""
REFERENCE_NOT_FOUND: Final = "ReferenceNotFound"
"""A Secret or ConfigMap that the spec names, or its key, does not exist."""
REFERENCE_REFUSED: Final = "ReferenceRefused"
"""A Secret or ConfigMap that the spec names is not labelled for use in sandboxes."""
POLICY_REFUSED: Final = "PolicyRefused"
"""The platform's policy forbids this image, runtime class, profile or network."""
EGRESS_GATEWAY_MISSING: Final = "EgressGatewayMissing"
"""The Environment allows hosts, and there is no egress gateway to reach them through."""
READING_PACKAGE_HOSTS: Final = "ReadingPackageHosts"
"""The first pod of an image is asked where its package managers get their packages."""
FETCHING_GIT: Final = "FetchingGit"
"""A repository is fetched for the first time."""
GIT_FETCH_FAILED: Final = "GitFetchFailed"
"""A repository cannot be fetched."""
FETCHED: Final = "Fetched"
"""Every repository was looked at, and what sandboxes get of it is known."""
RANGES_UNKNOWN: Final = "RangesUnknown"
"""The cluster's own addresses are not known, so that nothing can be kept off them."""
USER_NAMESPACE_MISSING: Final = "UserNamespaceMissing"
"""A pod that asked for a user namespace has none: its node does not make them."""
SECRET_EXISTS: Final = "SecretExists"  # noqa: S105 - a reason
"""A Secret of somebody else has the name that the operator needs."""
POOL_FILLED: Final = "PoolFilled"
"""As many warm pods as asked for."""
POOL_FILLING: Final = "PoolFilling"
"""Warm pods are being made."""
SETUP_FAILED: Final = "SetupFailed"
"""The setup script or a file failed in a new pod."""
POD_FAILED: Final = "PodFailed"
"""A new pod ended, or cannot start."""
PODS_REFUSED: Final = "PodsRefused"
"""The API server forbids new pods: a quota, or an admission policy."""
QUOTA_EXCEEDED: Final = "QuotaExceeded"
"""A ResourceQuota of the namespace allows no further pod."""
UNSCHEDULABLE: Final = "Unschedulable"
"""No node takes the pods."""
POD_STUCK: Final = "PodStuck"
"""A new pod does not start, and nobody says why; another takes its place."""
SANDBOX_MISBEHAVES: Final = "SandboxMisbehaves"
"""The exec server answers what none answers."""
REJECTED: Final = "Rejected"
"""The API server refuses an object that was made of the spec."""
PROVEN: Final = "Proven"
"""New sandboxes tried to reach the cluster and could not."""
NOT_PROVEN: Final = "NotProven"
"""No sandbox has been probed yet."""
NETWORK_NOT_ENFORCED: Final = "NetworkNotEnforced"
"""A sandbox reached what it must not reach: no pod becomes warm, no session is given."""

EGRESS_NOT_GRANTED: Final = "EgressNotGranted"
"""A pod waits until every egress gateway knows it."""
EGRESS_DENIED: Final = "EgressDenied"
"""Of an Event: an egress gateway let a connection of a sandbox not pass."""
ADMISSION_PROVEN: Final = "AdmissionProven"
"""The operator tried to weaken the namespace and was refused."""
ADMISSION_NOT_TRIED: Final = "AdmissionNotTried"
"""It has not tried yet, or its attempts showed nothing."""
ADMISSION_NOT_ENFORCED: Final = "AdmissionNotEnforced"
"""It was not refused: whoever may make pods there may make any."""

# Of Sessions.
CLAIMED: Final = "Claimed"
"""A pod is the session's and answers."""
STARTING: Final = "Starting"
"""A pod is being made for the session."""
POD_SILENT: Final = "PodSilent"
"""The pod that it is to have does not answer."""
ENVIRONMENT_NOT_FOUND: Final = "EnvironmentNotFound"
"""The Environment that the session names does not exist."""
ENVIRONMENT_NOT_READY: Final = "EnvironmentNotReady"
"""The Environment has a problem of its own."""
QUEUED: Final = "Queued"
"""As many sessions of its Environment as may run do: it waits in line until another one ends."""
NAMESPACE_FULL: Final = "NamespaceFull"
"""As many sessions of its namespace as the platform allows run, or have waited for longer."""
SESSION_TOO_LARGE: Final = "SessionTooLarge"
"""Its files and variables do not fit a claim."""
SESSION_REFUSED: Final = "SessionRefused"
"""The exec server refuses its files or variables."""
WORKSPACE_NOT_PERSISTENT: Final = "WorkspaceNotPersistent"
"""It cannot be suspended: its workspace would be gone."""
RESUMING: Final = "Resuming"
"""It gets a new pod on its workspace."""
RESUMED: Final = "Resumed"
"""It has a new pod on its workspace; shells and processes are gone."""
WORKSPACE_IN_USE: Final = "WorkspaceInUse"
"""Its last pod has not let go of the workspace yet."""
VOLUME_NOT_BOUND: Final = "VolumeNotBound"
"""There is no volume for the workspace, or it cannot be mounted."""
VOLUME_LOST: Final = "VolumeLost"
"""The volume with the workspace is gone."""
IMAGE_PULL_FAILED: Final = "ImagePullFailed"
"""The node does not get the image."""
IDLE_TIMEOUT: Final = "IdleTimeout"
MAX_LIFETIME: Final = "MaxLifetime"
POD_DELETED: Final = "PodDeleted"
NODE_LOST: Final = "NodeLost"
"""Its node is gone, does not answer, or was shut down."""
OOM_KILLED: Final = "OOMKilled"
"""The exec server's container had no memory left; a tool alone does not end a session."""
EVICTED: Final = "Evicted"
DISK_FULL: Final = "DiskFull"
"""It wrote more to its disk than it may."""
POD_ENDED: Final = "PodEnded"

NO_PLACE: Final = (QUEUED, NAMESPACE_FULL)
"""Why a session waits in line."""
HAS_PLACE: Final = "HasPlace"
"""A condition of sessions that had to wait in line: False until they run, whatever else keeps them
waiting meanwhile."""
LOSSES: Final = (POD_DELETED, NODE_LOST, OOM_KILLED, EVICTED, DISK_FULL, POD_ENDED)
"""Why a session has no pod any more, though nobody ended it."""

Status = Literal["True", "False", "Unknown"]


class Finding(NamedTuple):
    """A condition before it is stamped with times."""

    type: str
    status: Status
    reason: str
    message: str


def update(
    present: Sequence[Condition], findings: Iterable[Finding], generation: int, now: datetime
) -> list[Condition]:
    """Conditions after these findings; a time changes only when its status does."""
    by_type = {each.type: each for each in present}
    for finding in findings:
        old = by_type.get(finding.type)
        same = old is not None and old.status == finding.status
        by_type[finding.type] = Condition(
            type=finding.type,
            status=finding.status,
            reason=finding.reason,
            message=finding.message[:1000],
            last_transition_time=old.last_transition_time if old and same else timestamp(now),
            observed_generation=generation,
        )
    return list(by_type.values())


def timestamp(when: datetime) -> str:
    """A time as Kubernetes writes it; `when` is in UTC."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(when: datetime) -> str:
    """The same to the microsecond, where times are added up."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text)
