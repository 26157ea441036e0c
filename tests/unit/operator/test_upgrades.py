"""What an operator of the version before has made goes on with this one.

There a session's pod had a name of its own on the session's workspace, and its identity was the
Secret of that name.
"""

import copy
import hashlib

from cloister_operator import names
from cloister_operator.cluster.resources import PODS, SESSIONS, Resource
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.kept_sessions import (
    IDLE,
    JSON,
    KEPT,
    OOM,
    identity_of,
    mounted,
    own_pod,
    set_state,
    status,
    suspended,
)
from support.operator_objects import NAMESPACE


class Before(Connection):
    """The API as the version before writes to it."""

    async def create(self, resource: Resource, namespace: str, body: JSON) -> JSON:
        session = body["metadata"].get("labels", {}).get(names.SESSION_LABEL)
        if resource == PODS and session:
            body = copy.deepcopy(body)
            last = (self._cluster.get(SESSIONS, NAMESPACE, "s1").get("status") or {}).get("podUID")
            digest = hashlib.sha256(f"{session}/{last or ''}".encode()).hexdigest()
            body["metadata"]["name"] = name = f"py-{digest[:13]}"
            for each in body["spec"]["volumes"]:
                if each["name"] == names.IDENTITY_VOLUME:
                    each["secret"]["secretName"] = name
        return await super().create(resource, namespace, body)


def as_before(pod: JSON) -> bool:
    """Whether a pod is named as in the version before."""
    return bool(pod["metadata"]["name"] == identity_of(pod) != mounted(pod))


def as_now(pod: JSON) -> bool:
    """Whether a pod has the name of its volume claim."""
    return bool(pod["metadata"]["name"] == mounted(pod) != identity_of(pod))


async def test_a_session_goes_on_in_its_pod_and_then_in_one_of_the_new_name(world: World) -> None:
    world.apply_environment(**KEPT, **IDLE, pool={"size": 0})
    world.apply_session()
    before = world.start(Before(world.cluster))
    await before.until(lambda: world.served("s1"))
    await before.kill()
    kept = own_pod(world)
    assert as_before(kept)
    operator = world.start()
    await operator.settle()
    assert world.served("s1")
    assert own_pod(world)["metadata"]["uid"] == kept["metadata"]["uid"]
    world.cluster.set_pod_status(NAMESPACE, kept["metadata"]["name"], **OOM)
    await operator.until(lambda: world.served("s1") and status(world)["restarts"] == 1)
    assert as_now(own_pod(world))
    assert mounted(own_pod(world)) == mounted(kept)
    set_state(world, "Suspended")
    await operator.until(lambda: suspended(world))
    await operator.settle()
    assert world.pods() == []
    assert world.leaks() == set()


async def test_a_pod_gets_its_identity_under_the_name_that_it_mounts(world: World) -> None:
    """Whoever made it ended before it made that."""

    def ends(_count: int, write: Write) -> Fault | None:
        made = (write.verb, write.plural) == ("create", "pods")
        return Fault.KILLED_AFTER if made else None

    world.apply_environment(**KEPT, **IDLE, pool={"size": 0})
    uid = world.apply_session()
    before = world.start(Before(world.cluster, ends))
    await before.until(lambda: world.pods(session=uid))
    await before.kill()
    waiting = own_pod(world)
    assert as_before(waiting)
    assert identity_of(waiting) not in world.secrets()
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    assert own_pod(world)["metadata"]["uid"] == waiting["metadata"]["uid"]
    assert world.leaks() == set()
