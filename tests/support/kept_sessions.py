"""Sessions whose workspaces persist, in a cluster in memory."""

from typing import Any

from cloister_operator import names
from cloister_operator.cluster.resources import PODS, SESSIONS, VOLUME_CLAIMS
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]
KEPT: JSON = {"workspace": {"persistent": True, "size": "2Gi"}}
IDLE: JSON = {"lifecycle": {"onIdle": "Suspend", "idleTimeout": "10m", "maxLifetime": "24h"}}
OOM: JSON = {
    "phase": "Failed",
    "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}],
}
"""How the status of a pod ends whose exec server had no memory left."""


async def running(world: World, pool: int = 1, **most: int) -> Operator:
    """An operator with a running session whose workspace persists."""
    world.apply_environment(**KEPT, **IDLE, pool={"size": pool, **most})
    operator = world.start()
    await operator.until(lambda: world.pool_is(pool))
    world.apply_session()
    await operator.until(lambda: world.served("s1") and world.pool_is(pool))
    await operator.settle()
    return operator


def claims(world: World) -> dict[str, JSON]:
    """Volume claims by name."""
    return {each["metadata"]["name"]: each for each in world.cluster.all(VOLUME_CLAIMS, NAMESPACE)}


def status(world: World, name: str = "s1") -> JSON:
    """A Session's status."""
    found: JSON = world.session(name)["status"]
    return found


def set_state(world: World, state: str) -> None:
    """Ask the session to run, or to be suspended."""
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"state": state})


def suspended(world: World, reason: str = "Suspended") -> bool:
    """Whether the session is suspended for this reason, says so, and has no pod."""
    session = world.session()
    return (
        world.phase() == "Suspended"
        and world.condition(session) == ("False", reason)
        and world.condition(session, "Suspended") == ("True", reason)
        and world.cluster.all(
            PODS, NAMESPACE, f"{names.SESSION_LABEL}={session['metadata']['uid']}"
        )
        == []
    )


def mounted(pod: JSON) -> str:
    """The volume claim of a pod's workspace."""
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "workspace")
    found: str = volume["persistentVolumeClaim"]["claimName"]
    return found


def identity_of(pod: JSON) -> str:
    """The Secret that a pod mounts for its identity."""
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == names.IDENTITY_VOLUME)
    found: str = volume["secret"]["secretName"]
    return found


def own_pod(world: World) -> JSON:
    """The one pod of the session."""
    (found,) = world.pods(session=world.session()["metadata"]["uid"])
    return found


def status_of_claims(world: World) -> list[str]:
    """Whose claims there are: a session's, or the pool's."""
    return [
        "session" if names.SESSION_LABEL in each["metadata"]["labels"] else "warm"
        for each in claims(world).values()
    ]
