"""What callers are told before a Session's status says it, and that the status says the same."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.api.backend import NewSession
from cloister_operator.api.conditions import precise
from cloister_operator.api.session import FirstPod, Phase, SessionObject
from cloister_operator.cache import Store
from cloister_operator.cluster.resources import ENVIRONMENTS, PODS, SESSIONS
from cloister_operator.controller.backend import Backend
from cloister_operator.controller.promises import _DOUBTFUL, Promises
from cloister_operator.errors import LostError, PermanentError, TransientError
from support.eventually import until
from support.fake_api import Connection, Fault, Write
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE, NOW

CALL = NewSession(NAMESPACE, "py", name="s1", request_id="r-1", caller="alice")
PATIENCE = 5.0
MakeWorld = Callable[..., World]


class Held(Connection):
    """A way to the API server on which the statuses of Sessions are held up."""

    def __init__(self, world: World) -> None:
        super().__init__(world.cluster)
        self.open = asyncio.Event()
        self.waiting = 0

    async def patch_status(self, resource: Any, *args: Any, **more: Any) -> Any:
        if resource == SESSIONS:
            self.waiting += 1
            await self.open.wait()
        return await super().patch_status(resource, *args, **more)


class Lost(Connection):
    """A way on which the answer to a new Session is lost, and at first nobody can be asked about
    it.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world.cluster)
        self.silent = True

    async def create(self, resource: Any, *args: Any) -> Any:
        if resource != SESSIONS:
            return await super().create(resource, *args)
        # Without a step of the event loop: nobody hears of it before the call has failed.
        self._cluster.create(resource, *args)
        raise LostError("no answer from the API server")

    async def get(self, resource: Any, *args: Any) -> Any:
        if resource == SESSIONS and self.silent:
            raise TransientError("the API server cannot be reached")
        return await super().get(resource, *args)


@dataclass
class Answered:
    """A session whose caller has the answer, while its status waits to be written."""

    world: World
    operator: Operator
    backend: Backend
    held: Held
    session: SessionObject

    def written(self) -> dict[str, Any]:
        """The status that the API server has."""
        found: dict[str, Any] = self.world.session("s1").get("status") or {}
        return found


@pytest.fixture
async def answered(world: World) -> Answered:
    """An answer from the one warm pod."""
    world.apply_environment()
    held = Held(world)
    operator = world.start(held)
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    made = await backend.create_session(CALL)
    settled = await backend.wait_settled(*made.key, PATIENCE)
    assert settled is not None
    return Answered(world, operator, backend, held, settled)


async def test_a_call_is_answered_before_the_status_is_written(answered: Answered) -> None:
    status = answered.session.status
    assert status.phase is Phase.RUNNING
    assert answered.written() == {}
    (pod,) = answered.world.pods(session=answered.session.metadata.uid)
    assert (status.pod_name, status.pod_uid) == (pod["metadata"]["name"], pod["metadata"]["uid"])
    assert answered.world.sandboxes.claimed[pod["metadata"]["uid"]] == answered.session.metadata.uid


async def test_every_reader_here_sees_what_was_answered(answered: Answered) -> None:
    backend, told = answered.backend, answered.session.status
    found = backend.get_session(NAMESPACE, "s1")
    assert found is not None
    assert found.status == told
    assert [each.status for each in backend.list_sessions(NAMESPACE, "py")] == [told]
    watch = backend.watch_sessions(NAMESPACE, "s1")
    change = await anext(watch)
    assert change.session is not None
    assert change.session.status == told
    assert backend.exec_address(found) is not None
    with pytest.raises(PermanentError, match="would lose its work"):
        await backend.set_state(NAMESPACE, "s1", "Suspended")


async def test_the_status_says_what_was_answered_however_late_it_is(answered: Answered) -> None:
    told = answered.session.status
    answered.world.clock.now += timedelta(minutes=2)
    answered.held.open.set()
    await answered.operator.until(lambda: answered.world.served("s1"))
    written = answered.written()
    assert (written["podUID"], written["runningSince"]) == (told.pod_uid, told.running_since)
    assert written["startedAt"] == told.started_at


async def test_who_leads_next_writes_what_was_answered(answered: Answered) -> None:
    told = answered.session.status
    await answered.operator.kill()
    answered.world.clock.now += timedelta(minutes=2)
    following = answered.world.start()
    await following.until(lambda: answered.world.served("s1"))
    written = answered.written()
    assert (written["podUID"], written["runningSince"]) == (told.pod_uid, told.running_since)


async def test_a_pod_that_is_lost_before_the_status_is_written_counts_as_run(
    answered: Answered,
) -> None:
    world, told = answered.world, answered.session.status
    world.clock.now += timedelta(seconds=30)
    world.cluster.vanish(PODS, NAMESPACE, told.pod_name or "")
    answered.held.open.set()
    await answered.operator.until(lambda: world.phase() == "Failed")
    assert answered.written()["runningSeconds"] == 30
    assert answered.written()["reason"] == "PodDeleted"


async def test_a_session_that_may_have_run_in_a_pod_that_is_gone_gets_no_other(
    answered: Answered,
) -> None:
    world = answered.world
    await answered.operator.kill()
    world.cluster.vanish(PODS, NAMESPACE, answered.session.status.pod_name or "")
    following = world.start()
    await following.until(lambda: world.phase() == "Failed")
    assert answered.written()["reason"] == "PodDeleted"
    assert world.pods(session=answered.session.metadata.uid) == []


async def test_a_session_asked_to_suspend_meanwhile_runs_on(answered: Answered) -> None:
    world = answered.world
    await answered.operator.kill()
    world.cluster.patch_spec(SESSIONS, NAMESPACE, "s1", {"state": "Suspended"})
    following = world.start()
    await following.until(lambda: world.served("s1"))
    await following.settle()
    assert world.served("s1")
    assert world.condition(world.session(), "Suspended") == ("False", "WorkspaceNotPersistent")


async def test_a_session_deleted_before_its_status_is_written_leaves_nothing(
    answered: Answered,
) -> None:
    world, uid = answered.world, answered.session.metadata.uid
    world.cluster.delete(SESSIONS, NAMESPACE, "s1")
    answered.held.open.set()
    await answered.operator.until(lambda: world.pool_is(1) and not world.pods(session=uid))
    await answered.operator.settle()
    assert list(world.problems()) == []
    assert world.leaks() == set()
    assert answered.backend.get_session(NAMESPACE, "s1") is None
    promises = answered.operator.context.promises
    assert (promises._made, promises._held, promises._told) == ({}, {}, {})


async def test_a_status_that_is_refused_is_written_again_until_it_holds(world: World) -> None:
    world.apply_environment()
    refused = 0

    def fault(_count: int, write: Write) -> Fault | None:
        nonlocal refused
        if write.plural != "sessions/status" or refused == 3:
            return None
        refused += 1
        return (Fault.REFUSED, Fault.CONFLICT, Fault.LOST)[refused - 1]

    operator = world.start(Connection(world.cluster, fault))
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    made = await backend.create_session(CALL)
    told = await backend.wait_settled(*made.key, PATIENCE)
    await operator.until(lambda: world.served("s1"))
    assert told is not None
    assert world.session()["status"]["runningSince"] == told.status.running_since
    assert refused == 3


async def _call(world: World, operator: Operator, connection: Connection) -> SessionObject | None:
    """The answer to a call; None from an operator that died before."""
    backend = Backend(operator.context)

    async def call() -> SessionObject | None:
        made = await backend.create_session(CALL)
        return await backend.wait_settled(*made.key, PATIENCE)

    calling = asyncio.create_task(call())
    await until(lambda: calling.done() or connection.killed.is_set())
    await operator.until(lambda: connection.killed.is_set() or world.served("s1"))
    if calling.done():
        return calling.result()
    calling.cancel()
    return None


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("which", ["create sessions", "patch pods", "patch sessions/status"])
async def test_killed_at_any_write_of_a_claim_its_answer_holds(
    make_world: MakeWorld, fault: Fault, which: str
) -> None:
    world = make_world()
    world.apply_environment()
    struck = False

    def strikes(_count: int, write: Write) -> Fault | None:
        nonlocal struck
        if not calls or struck or which != f"{write.verb} {write.plural}":
            return None
        struck = True
        return fault

    calls = False
    connection = Connection(world.cluster, strikes)
    operator = world.start(connection)
    await operator.until(lambda: world.pool_is(1))
    calls = True
    told = await _call(world, operator, connection)
    assert struck
    assert (told is not None) == (which == "patch sessions/status")
    await operator.kill()
    following = world.start()
    await following.until(lambda: following.context.synced.is_set() and following.quiet)
    again = Backend(following.context)
    await following.until(lambda: again._context.resolved)
    made = await again.create_session(CALL)
    await following.until(lambda: world.served("s1") and world.pool_is(1))
    status = world.session()["status"]
    if told:
        assert made.metadata.uid == told.metadata.uid
        assert (status["podUID"], status["runningSince"]) == (
            told.status.pod_uid,
            told.status.running_since,
        )
    assert len(world.pods()) == 2


@pytest.mark.parametrize(
    "spec", [{"workspace": {"persistent": True}}, {"pool": {"size": 1, "maxSessions": 3}}]
)
async def test_where_places_or_volumes_are_at_stake_the_status_decides(
    world: World, spec: dict[str, Any]
) -> None:
    world.apply_environment(**spec)
    held = Held(world)
    operator = world.start(held)
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    made = await backend.create_session(CALL)
    assert names.FIRST_POD not in made.metadata.annotations
    await operator.until(lambda: held.waiting)
    found = backend.get_session(NAMESPACE, "s1")
    assert found is not None
    assert found.status.phase is Phase.PENDING
    held.open.set()
    await operator.until(lambda: world.served("s1"))


async def test_a_pod_is_free_again_when_its_session_was_not_made(world: World) -> None:
    world.apply_environment()
    refuses = True

    def fault(_count: int, write: Write) -> Fault | None:
        return Fault.REFUSED if refuses and write.plural == "sessions" else None

    operator = world.start(Connection(world.cluster, fault))
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    with pytest.raises(TransientError):
        await backend.create_session(CALL)
    assert operator.context.reserved == set()
    refuses = False
    made = await backend.create_session(CALL)
    assert made.first_pod is not None
    await operator.until(lambda: world.served("s1"))


async def test_a_session_whose_making_was_not_answered_fails_for_no_pod_that_goes(
    world: World,
) -> None:
    """Nobody can have worked in it: another pod serves as well."""
    world.apply_environment()
    connection = Lost(world)
    operator = world.start(connection)
    backend = Backend(operator.context)
    await operator.until(lambda: world.pool_is(1))
    (warm,) = world.pods()
    with pytest.raises(TransientError):
        await backend.create_session(CALL)
    assert operator.context.reserved == set()
    found = SessionObject.parse(world.session()).first_pod
    assert found is not None
    assert found.uid == warm["metadata"]["uid"]
    world.cluster.vanish(PODS, NAMESPACE, found.name)
    connection.silent = False
    await operator.until(lambda: world.served("s1"))
    assert world.session()["status"]["podUID"] != found.uid
    await operator.until(lambda: not operator.context.promises._doubtful)


async def test_of_sessions_that_were_perhaps_made_only_so_many_are_known(world: World) -> None:
    promises = Promises(Store(SessionObject.parse, lambda _: ()), set())
    for n in range(_DOUBTFUL + 5):
        promises.make((NAMESPACE, f"s{n}"), FirstPod("p", f"u{n}", NOW))
        promises.doubt((NAMESPACE, f"s{n}"))
    assert len(promises._doubtful) == _DOUBTFUL


@pytest.mark.parametrize("made_by", [names.ISSUED_BY_API, "somebody"])
async def test_an_annotation_gets_nobody_a_pod_of_another_environment(
    world: World, made_by: str
) -> None:
    world.apply_environment()
    world.apply_environment("go", setup="echo secret")
    operator = world.start()
    await operator.until(lambda: world.pool_is(1) and world.pool_is(1, "go"))
    (other,) = (each["metadata"] for each in world.pods(environment="go"))
    forged = FirstPod(other["name"], other["uid"], NOW - timedelta(days=9))
    notes = {names.FIRST_POD: str(forged), names.ISSUED_BY: made_by}
    uid = world.apply_session(annotations=notes)
    await operator.until(lambda: world.served("s1"))
    (mine,) = world.pods(session=uid)
    assert mine["metadata"]["uid"] != other["uid"]
    assert world.session()["status"]["runningSince"] == precise(world.clock())


@pytest.mark.parametrize("of_namespace", [True, False])
async def test_an_annotation_gets_nobody_past_a_limit_of_sessions(
    make_world: MakeWorld, of_namespace: bool
) -> None:
    """Who may make Sessions writes their annotations, and finds the names of warm pods."""
    world = make_world(max_sessions_per_namespace=1 if of_namespace else 0)
    pool = {"size": 1} if of_namespace else {"size": 1, "maxSessions": 1}
    world.apply_environment(pool=pool)
    operator = world.start()
    world.apply_session("s1")
    await operator.until(lambda: world.served("s1") and world.pool_is(1))
    (warm,) = (each["metadata"] for each in world.pods(state=names.STATE_WARM))
    forged = FirstPod(warm["name"], warm["uid"], NOW)
    notes = {names.FIRST_POD: str(forged), names.ISSUED_BY: names.ISSUED_BY_API}
    world.apply_session("s2", annotations=notes)
    reason = "NamespaceFull" if of_namespace else "Queued"
    await operator.until(lambda: world.condition(world.session("s2"))[1] == reason)
    assert not world.pods(session=world.session("s2")["metadata"]["uid"])
    # Nor does it keep the pod from the pool, which has no more use for it.
    world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", {"setup": "true"})
    await operator.until(
        lambda: (
            world.pool_is(1)
            and warm["name"] not in [each["metadata"]["name"] for each in world.pods()]
        )
    )
    await operator.settle()
    assert world.session("s2")["status"]["phase"] == "Pending"
