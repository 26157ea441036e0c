"""What a person and a worker do, from an empty namespace to an empty namespace."""

from collections.abc import Callable
from typing import Any

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator import names
from cloister_operator.cluster.resources import ENVIRONMENTS, SESSIONS
from faults_operator.rig import Run

JSON = dict[str, Any]
POOL = 1


async def everything(run: Run) -> None:
    """Each step waits until what was asked for has come about."""
    spec = {"pool": {"size": POOL}, "workspace": {"persistent": True}}
    await run.create(ENVIRONMENTS, names.ENVIRONMENT_KIND, "py", spec)
    await run.until("a full pool", lambda: run.pool_is(POOL, 0))

    await run.create(SESSIONS, names.SESSION_KIND, "one", {"environmentName": "py"})
    pod = await run.until("session one", lambda: run.served("one"))
    kept = run.rig.kubelet.workspace(pod) / "kept"
    kept.write_text("kept")
    request = sessions_pb2.CreateSessionRequest(
        namespace=run.namespace, environment="py", request_id="r1"
    )
    two = (await run.claim(request)).name
    await run.until("session two", lambda: run.served(two))
    assert (await run.claim(request)).name == two
    made = {each["metadata"]["name"] for each in run.rig.history.peek_all(SESSIONS, run.namespace)}
    assert made == {"one", two}, f"one request made {sorted(made - {'one'})}"
    await run.until("a full pool again", lambda: run.pool_is(POOL, 2))

    await run.patch(SESSIONS, "one", {"state": "Suspended"})
    await run.until("a suspended session", lambda: _suspended(run, "one"))
    await run.patch(SESSIONS, "one", {"state": "Running"})
    pod = await run.until("the session again", lambda: run.served("one"))
    assert (run.rig.kubelet.workspace(pod) / "kept").read_text() == "kept"
    assert run.served(two), "another session was disturbed"

    for each in ("one", two):
        await run.delete(SESSIONS, each)
    await run.until("no sessions, and a full pool", lambda: _only_the_pool(run))
    await run.delete(ENVIRONMENTS, "py")
    await run.until("nothing", lambda: not run.left())


async def one_answer(run: Run, begin: Callable[[], None]) -> None:
    """A call that is answered before its session's status is written: that says the same then.
    `begin` is called when the pool is full.
    """
    await run.create(ENVIRONMENTS, names.ENVIRONMENT_KIND, "py", {"pool": {"size": POOL}})
    await run.until("a full pool", lambda: run.pool_is(POOL, 0))
    begin()
    request = sessions_pb2.CreateSessionRequest(
        namespace=run.namespace, environment="py", request_id="r1"
    )
    told = await run.claim(request)
    await run.until("the session", lambda: run.served(told.name))
    status = run.session(told.name)["status"]
    assert (status["podName"], status["endpoint"]) == (told.pod_name, told.endpoint)
    await run.until("a full pool again", lambda: run.pool_is(POOL, 1))
    await run.delete(SESSIONS, told.name)
    await run.until("no sessions, and a full pool", lambda: _only_the_pool(run))
    await run.delete(ENVIRONMENTS, "py")
    await run.until("nothing", lambda: not run.left())


def _suspended(run: Run, name: str) -> bool:
    session = run.session(name)
    uid = session["metadata"]["uid"]
    return session.get("status", {}).get("phase") == "Suspended" and not run.pods(session=uid)


def _only_the_pool(run: Run) -> bool:
    return run.pool_is(POOL, 0) and not any(
        each.startswith("sessions/") or each.endswith(names.credentials_secret(""))
        for each in run.left()
    )
