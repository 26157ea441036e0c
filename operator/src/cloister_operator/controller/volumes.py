"""The volumes of persistent workspaces: whose each claim is, and what is wrong with it.

A pod has the name of its claim, so that a volume has one pod at a time. The claim of a pool's pod
belongs to the pod and goes with it. When a session takes the pod, the claim becomes the session's
before the status says that it runs: from then on it outlives its pods, and goes with the Session;
when it never ran there, the claim goes with that pod all the same. A session that gets no warm pod
has a claim named by its UID, its own from the start.
"""

import logging
from datetime import timedelta

from .. import manifests, names
from ..api import conditions
from ..api.common import JSON
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import SessionObject
from ..cluster.resources import EVENTS, VOLUME_CLAIMS
from ..errors import (
    ConflictError,
    NotFoundError,
    OperatorError,
    PermanentError,
    TransientError,
)
from ..plan.failure import Failure
from ..sandboxes.answers import clean
from .context import Context

log = logging.getLogger(__name__)

QUIET = timedelta(seconds=5)
"""So long after its creation a pod's volume is nothing to worry about."""
_TELLING = frozenset(
    {"FailedAttachVolume", "FailedBinding", "FailedMapVolume", "FailedMount", "ProvisioningFailed"}
)


async def ensure_of_pod(context: Context, pod: PodView) -> None:
    """Make the claim of a pool's pod; that it is there already is fine. That of a session's is
    there, or lost.

    Raises PermanentError for one that somebody else made: what is in it is theirs.
    """
    environment = context.environments.get(pod.namespace, pod.environment)
    if pod.claim != pod.name or environment is None:
        return
    if not pod.session_uid:
        body = manifests.workspace_claim(environment, pod.name, manifests.pod_reference(pod))
        try:
            await context.api.create(VOLUME_CLAIMS, pod.namespace, body)
        except ConflictError:
            log.debug("there is a claim %s", pod.name)
        else:
            return
    found = await context.api.get(VOLUME_CLAIMS, pod.namespace, pod.name)
    if not _owned_by(found, pod.uid, pod.session_uid):
        raise _not_ours(pod.name, "pod")


async def of_session(
    context: Context, session: SessionObject, environment: EnvironmentObject
) -> str | None:
    """The claim for a session's next pod: the one with its workspace, or a new one; None where the
    workspace is to end with the pod.

    Raises PermanentError (VolumeLost) when the workspace is gone.
    """
    kept = session.status.workspace_claim
    if kept is None:
        return await _make(context, session, environment)
    lost = f"the volume claim {kept} is gone, and the workspace with it"
    try:
        found = await context.api.get(VOLUME_CLAIMS, session.metadata.namespace, kept)
    except NotFoundError:
        raise PermanentError(conditions.VOLUME_LOST, lost) from None
    if "deletionTimestamp" in found["metadata"] or not _owned_by(found, session.metadata.uid):
        raise PermanentError(conditions.VOLUME_LOST, lost)
    if (found.get("status") or {}).get("phase") == "Lost":
        message = f"the volume behind claim {kept} is gone, and the workspace with it"
        raise PermanentError(conditions.VOLUME_LOST, message)
    return kept


async def made_for(context: Context, session: SessionObject) -> bool:
    """Whether there is a claim that an earlier attempt made for the session."""
    metadata = session.metadata
    name = names.workspace_claim(metadata.name, metadata.uid)
    try:
        found = await context.api.get(VOLUME_CLAIMS, metadata.namespace, name)
    except NotFoundError:
        return False
    return _owned_by(found, metadata.uid)


async def _make(
    context: Context, session: SessionObject, environment: EnvironmentObject
) -> str | None:
    if not environment.spec.workspace.persistent:
        return None
    metadata = session.metadata
    name = names.workspace_claim(metadata.name, metadata.uid)
    body = manifests.workspace_claim(environment, name, session.owner_reference(), metadata.uid)
    try:
        await context.api.create(VOLUME_CLAIMS, metadata.namespace, body)
    except ConflictError:
        found = await context.api.get(VOLUME_CLAIMS, metadata.namespace, name)
        if not _owned_by(found, metadata.uid):
            raise _not_ours(name, "Session") from None
    return name


def is_own(session: SessionObject, pod: PodView) -> bool:
    """Whether a pod mounts no claim but one that is the session's already."""
    made = names.workspace_claim(session.metadata.name, session.metadata.uid)
    return pod.claim in ("", session.status.workspace_claim, made)


async def adopt(context: Context, session: SessionObject, pod: PodView) -> None:
    """Make the claim of a pod that the session has taken the session's; repeatable."""
    label = f"/metadata/labels/{names.SESSION_LABEL.replace('/', '~1')}"
    operations: list[JSON] = [
        {"op": "add", "path": label, "value": session.metadata.uid},
        {
            "op": "replace",
            "path": "/metadata/ownerReferences",
            "value": [session.owner_reference()],
        },
    ]
    try:
        await context.api.json_patch(VOLUME_CLAIMS, pod.namespace, pod.claim, operations)
    except ConflictError as error:
        # It tests nothing, so that nobody else can have won: the API server came too late. A
        # conflict would say that the pod serves another session.
        raise TransientError(str(error)) from error


async def give_back(context: Context, session: SessionObject, pod: PodView) -> None:
    """Let the claim that became the session's with a pod go with the pod again; repeatable.

    For pods in which it never ran and never will, whatever any operator knows: the Session's status
    says so already. What is not the session's stays whose it is: a pod's label says little.
    """
    if is_own(session, pod):
        return
    owners = "/metadata/ownerReferences"
    operations: list[JSON] = [
        {"op": "test", "path": owners, "value": [session.owner_reference()]},
        {"op": "replace", "path": owners, "value": [manifests.pod_reference(pod)]},
    ]
    try:
        await context.api.json_patch(VOLUME_CLAIMS, pod.namespace, pod.claim, operations)
    except (ConflictError, NotFoundError):
        log.debug("the claim %s is not the session's", pod.claim)


async def problem(context: Context, pod: PodView) -> Failure | None:
    """What the events say about a pod that waits for its workspace; None when they say nothing."""
    if not pod.claim or pod.ip or context.clock() < pod.created + QUIET:
        return None
    try:
        found = [
            *await _events(context, pod, "PersistentVolumeClaim", pod.claim),
            *await _events(context, pod, "Pod", pod.name),
        ]
    except OperatorError as error:
        log.info("the events about pod %s cannot be read: %s", pod.name, error)
        return None
    telling = [each for each in found if each.get("reason") in _TELLING]
    if not telling:
        return None
    last = max(telling, key=lambda each: each.get("lastTimestamp") or "")
    message = f"claim {pod.claim}: {last['reason']}: {clean(last.get('message') or '', 600)}"
    return Failure(conditions.VOLUME_NOT_BOUND, message)


async def _events(context: Context, pod: PodView, kind: str, name: str) -> list[JSON]:
    about = f"involvedObject.kind={kind},involvedObject.name={name}"
    found, _ = await context.api.list(EVENTS, pod.namespace, fields=about)
    return list(found)


def _owned_by(found: JSON, *uids: str) -> bool:
    owners = found["metadata"].get("ownerReferences") or []
    return any(each["uid"] in uids for each in owners)


def _not_ours(name: str, whose: str) -> PermanentError:
    return PermanentError(
        conditions.VOLUME_NOT_BOUND,
        f"there is a PersistentVolumeClaim {name} that is not this {whose}'s; delete it",
    )
