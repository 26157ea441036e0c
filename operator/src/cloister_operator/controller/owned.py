"""Secrets that belong to one object, though their names may have been used before."""

import logging

from ..api import conditions
from ..api.common import JSON
from ..cluster.api import Api
from ..cluster.resources import SECRETS
from ..errors import ConflictError, NotFoundError, PermanentError, TransientError

log = logging.getLogger(__name__)


async def create(api: Api, namespace: str, body: JSON) -> None:
    """Make a Secret; that its owner has it already is fine.

    Raises TransientError while the Secret of a deleted object of the owner's name waits for the
    garbage collector, PermanentError when the Secret is somebody else's, which is left alone.
    """
    try:
        await api.create(SECRETS, namespace, body)
    except ConflictError:
        _check(await api.get(SECRETS, namespace, body["metadata"]["name"]), body)


async def ensure(api: Api, namespace: str, body: JSON) -> None:
    """The same for a Secret that is most likely there."""
    try:
        found = await api.get(SECRETS, namespace, body["metadata"]["name"])
    except NotFoundError:
        await create(api, namespace, body)
    else:
        _check(found, body)


async def remove(api: Api, namespace: str, name: str, owner_uid: str) -> None:
    """Delete the owner's Secret of this name; that it is gone already is fine.

    Parts of the name may come from a pod's label, which others can write: a Secret that is not the
    owner's stays. Raises TransientError, also when it was replaced meanwhile.
    """
    try:
        found = (await api.get(SECRETS, namespace, name))["metadata"]
        if any(each["uid"] == owner_uid for each in found.get("ownerReferences") or []):
            await api.delete(SECRETS, namespace, name, uid=found["uid"])
        else:
            log.warning("Secret %s/%s is somebody else's, and is not deleted", namespace, name)
    except NotFoundError:
        log.debug("Secret %s is gone", name)


async def remove_stale(api: Api, namespace: str, body: JSON, key: str) -> None:
    """Delete the owner's Secret if it has something else under `key` than the one to be made."""
    metadata = body["metadata"]
    try:
        found = await api.get(SECRETS, namespace, metadata["name"])
    except NotFoundError:
        return
    if (found.get("data") or {}).get(key) != body["data"][key]:
        (owner,) = metadata["ownerReferences"]
        await remove(api, namespace, metadata["name"], owner["uid"])


def _check(found: JSON, wanted: JSON) -> None:
    (owner,) = wanted["metadata"]["ownerReferences"]
    owners = found["metadata"].get("ownerReferences") or []
    if any(each["uid"] == owner["uid"] for each in owners):
        return
    name = found["metadata"]["name"]
    if any((each["kind"], each["name"]) == (owner["kind"], owner["name"]) for each in owners):
        raise TransientError(f"Secret {name} of a deleted {owner['kind']} is not collected yet")
    raise PermanentError(
        conditions.SECRET_EXISTS,
        f"there is a Secret {name} that is not this {owner['kind']}'s; delete it, or choose "
        "another name",
    )
