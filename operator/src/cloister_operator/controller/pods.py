"""Makes and deletes sandbox pods, and gives each its identity."""

import logging
import secrets

from .. import manifests, names
from ..api import conditions
from ..api.environment import EnvironmentObject
from ..api.pod import PodView, view
from ..api.session import SessionObject
from ..cluster.resources import PODS, SESSIONS
from ..errors import (
    ConflictError,
    LostError,
    NotFoundError,
    OperatorError,
    PermanentError,
    QuotaError,
    RefusedError,
    TransientError,
)
from ..plan.failure import Failure
from ..recipe import Recipe
from . import owned, volumes
from .context import Context

log = logging.getLogger(__name__)


async def confirm(context: Context, session: SessionObject) -> None:
    """Raise TransientError unless the API server has the Session as it is known here: another
    operator may have given it a pod meanwhile, which to this one seems to be nobody's, or to be
    missing.
    """
    raw = await context.api.get(SESSIONS, *session.key)
    context.sessions.put(raw)
    if raw["metadata"]["resourceVersion"] != session.metadata.resource_version:
        raise TransientError("the Session has changed meanwhile")


def pool_of(environment: EnvironmentObject, recipe: Recipe) -> tuple[str, str, str]:
    """For whom a pod is made that is no session's."""
    return *environment.key, recipe.hash


def new_name(environment: str, recipe: str) -> str:
    """A name nobody else has; chosen here, so that a lost answer can be looked up."""
    return f"{environment}-{recipe[:5]}-{secrets.token_hex(4)}"


async def create(
    context: Context,
    environment: EnvironmentObject,
    recipe: Recipe,
    session: SessionObject | None = None,
    claim: str | None = None,
) -> PodView:
    """Make a pod, and its identity right after it; raises OperatorError.

    `claim`: the session's volume claim; a pool's pod gets its own where workspaces persist. A pod
    has the name of its claim: the API server has one pod of a name at a time, and so one at work on
    a volume, whatever operators know of each other, and however late their calls arrive.

    An answer that is lost is looked up under the pod's name, at the next attempt if not now. A kill
    between the writes is mended by `ensure_identity` when the pod is next looked at.
    """
    flights, now = context.flights, context.clock()
    who = session.metadata.uid if session else pool_of(environment, recipe)
    lost = flights.take(who, now)
    name = lost or new_name(environment.metadata.name, recipe.hash)
    identity = ""
    if session is None and environment.spec.workspace.persistent:
        claim = name
    elif session and claim:
        await confirm(context, session)
        name, identity = claim, new_name(environment.metadata.name, recipe.hash)
    pod = manifests.SandboxPod(name, environment, recipe, session, claim, identity)
    body = manifests.sandbox_pod(pod, context.settings)
    namespace = environment.metadata.namespace
    if body["metadata"]["labels"].get(names.NETWORK_LABEL) == names.NETWORK_GATEWAY:
        await context.egress.until_clean()
    try:
        made = await context.api.create(PODS, namespace, body)
    except (ConflictError, LostError) as error:
        try:
            made = await context.api.get(PODS, namespace, pod.name)
        except OperatorError as unknown:
            if lost or isinstance(error, LostError):
                flights.lost(who, name, now)
            if isinstance(unknown, NotFoundError):
                # Why it is not there, or not yet.
                raise error from None
            raise
    except TransientError:
        if lost:
            flights.lost(who, name, now)
        raise
    found = view(made)
    if found.deleting or found.session_uid != (session.metadata.uid if session else ""):
        raise TransientError(f"the name of pod {found.name} is still taken")
    context.made.add(found.uid)
    try:
        # The identity first: the mirror's listeners may dial the pod.
        await ensure_identity(context, found)
    finally:
        context.pods.put(made)
        # Before that a look at all pods may have taken it for a stranger.
        context.made.add(found.uid)
    return found


async def ensure_identity(context: Context, pod: PodView) -> None:
    """Make the Secret that the pod mounts, and the claim of its workspace if that goes with it;
    that they are there already is fine.

    Until it can, the pod waits for them, and those who wait for it are told why.
    """
    try:
        await _ensure_identity(context, pod)
    except RefusedError as error:
        news = pod.uid not in context.refusals
        context.refusals[pod.uid] = Failure(refusal(error), f"pod {pod.name}: {error}")
        if news:
            context.enqueue_pod_owners(pod)
        raise
    context.refusals.pop(pod.uid, None)
    context.identified.add(pod.uid)


async def _ensure_identity(context: Context, pod: PodView) -> None:
    identity = context.authority.pod_server(pod.uid, context.clock())
    body = manifests.identity_secret(
        pod, identity.certificate_pem, identity.private_key_pem, identity.ca_pem
    )
    # One of an earlier pod of this name is about to be collected: it serves this one not at all.
    await owned.create(context.api, pod.namespace, body)
    await _ensure_claim(context, pod)


async def _ensure_claim(context: Context, pod: PodView) -> None:
    try:
        await volumes.ensure_of_pod(context, pod)
    except PermanentError:
        latest = view(await context.api.get(PODS, pod.namespace, pod.name))
        if latest.uid != pod.uid:
            raise TransientError(f"pod {pod.name} is gone") from None
        if latest.session_uid != pod.session_uid:
            # While this was on its way a session has taken the pod, and the claim with it.
            return await volumes.ensure_of_pod(context, latest)
        # It would start with it all the same.
        await delete_unchanged(context, latest)
        raise


def refusal(error: RefusedError) -> str:
    """The reason of a condition that is False because the API server forbids a pod."""
    return conditions.QUOTA_EXCEEDED if isinstance(error, QuotaError) else conditions.PODS_REFUSED


async def delete(context: Context, pod: PodView) -> None:
    """Delete that very pod; that it is gone already is fine."""
    await context.egress.revoke(pod)
    try:
        await context.api.delete(PODS, pod.namespace, pod.name, uid=pod.uid)
    except (NotFoundError, ConflictError):
        log.debug("pod %s is gone", pod.name)
    context.forget_pod(pod.uid)


async def delete_unchanged(context: Context, pod: PodView) -> None:
    """Delete that very pod as it was looked at, so that it has neither started nor been claimed
    since; raises ConflictError when it has changed.
    """
    version = str(pod.resource_version)
    await context.egress.revoke(pod)
    try:
        await context.api.delete(PODS, pod.namespace, pod.name, uid=pod.uid, version=version)
    except NotFoundError:
        log.debug("pod %s is gone", pod.name)
    except OperatorError:
        context.egress.restore(pod)
        raise
    context.forget_pod(pod.uid)


async def delete_unclaimed(context: Context, pod: PodView) -> None:
    """Delete a pool's pod unless somebody has claimed it since; then nothing happens.

    Claims change the pod, so that the precondition on its version sees them.
    """
    if pod.uid in context.reserved or context.promised(pod):
        return
    context.reserved.add(pod.uid)
    await context.egress.revoke(pod)
    try:
        latest = await context.api.get(PODS, pod.namespace, pod.name)
        now = view(latest)
        if now.uid != pod.uid or now.state == names.STATE_CLAIMED or context.promised(now):
            context.pods.put(latest)
            context.reserved.discard(pod.uid)
            context.egress.restore(pod)
            return
        await context.api.delete(
            PODS, pod.namespace, pod.name, uid=pod.uid, version=str(now.resource_version)
        )
    except NotFoundError:
        log.debug("pod %s is gone", pod.name)
    except OperatorError:
        # It changed in between, or nobody answered: the next reconcile decides anew.
        context.reserved.discard(pod.uid)
        context.egress.restore(pod)
        raise
    context.dialer.forget(pod.uid)
