"""Sessions made for the Sessions API: which calls are the same call."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator.api.backend import NewFile, NewSession
from cloister_operator.api.session import Phase, SessionObject
from cloister_operator.controller.backend import Backend
from cloister_operator.errors import PermanentError, TransientError
from support.eventually import until
from support.fake_api import Connection
from support.fake_operator import World
from support.operator_objects import NAMESPACE

CALL = NewSession(NAMESPACE, "py", name="", request_id="r-1", caller="alice", env={"A": "1"})


@pytest.fixture
async def backend(world: World) -> Backend:
    """The backend of an operator that knows the Environment `py`."""
    world.apply_environment("py")
    operator = world.start()
    await operator.until(lambda: operator.context.environments.get(NAMESPACE, "py"))
    return Backend(operator.context)


async def test_the_same_call_again_finds_its_session(backend: Backend) -> None:
    first = await backend.create_session(CALL)
    again = await backend.create_session(replace(CALL, env={"A": "1"}))
    assert first.metadata.uid == again.metadata.uid
    assert first.metadata.name.startswith("py-")


async def test_the_same_call_may_have_its_variables_in_another_order(backend: Backend) -> None:
    """They are a map, which each process reads in an order of its own."""
    first = await backend.create_session(replace(CALL, env={"A": "1", "B": "2", "C": "3"}))
    again = await backend.create_session(replace(CALL, env={"C": "3", "A": "1", "B": "2"}))
    assert first.metadata.uid == again.metadata.uid


@pytest.mark.parametrize(
    "change",
    [
        lambda call: replace(call, env={"A": "2"}),
        lambda call: replace(call, files=(NewFile("/workspace/a", 0o644, b"a"),)),
        lambda call: replace(call, idle_timeout=timedelta(minutes=1)),
        lambda call: replace(call, max_lifetime=timedelta(minutes=1)),
    ],
    ids=["env", "files", "idle_timeout", "max_lifetime"],
)
async def test_a_request_id_with_another_payload_is_refused(
    backend: Backend, change: Callable[[NewSession], NewSession]
) -> None:
    await backend.create_session(CALL)
    with pytest.raises(PermanentError, match="another call with this request id") as refused:
        await backend.create_session(change(CALL))
    assert (refused.value.reason, refused.value.field) == ("AlreadyExists", "requestId")


@pytest.mark.parametrize(
    "change",
    [
        lambda call: replace(call, environment="go"),
        lambda call: replace(call, name="mine"),
    ],
    ids=["environment", "name"],
)
async def test_a_request_id_makes_one_session_whatever_it_would_be_called(
    world: World, backend: Backend, change: Callable[[NewSession], NewSession]
) -> None:
    world.apply_environment("go")
    known = backend._context.environments
    await until(lambda: known.get(NAMESPACE, "go"))
    answers = await asyncio.gather(
        backend.create_session(CALL),
        backend.create_session(change(CALL)),
        backend.create_session(CALL),
        return_exceptions=True,
    )
    first, refused, again = answers
    assert isinstance(first, SessionObject)
    assert isinstance(again, SessionObject)
    assert first.metadata.uid == again.metadata.uid
    assert isinstance(refused, PermanentError)
    assert (refused.reason, refused.field) == ("AlreadyExists", "requestId")
    assert first.metadata.name in str(refused)
    with pytest.raises(PermanentError, match="another call with this request id"):
        await backend.create_session(change(CALL))


async def test_a_request_id_that_made_nothing_is_free(backend: Backend) -> None:
    connection = backend._context.api
    assert isinstance(connection, Connection)
    connection.away = True
    with pytest.raises(TransientError):
        await backend.create_session(CALL)
    connection.away = False
    named = await backend.create_session(replace(CALL, name="mine"))
    assert named.metadata.name == "mine"


async def test_a_request_id_means_nothing_to_another_caller(backend: Backend) -> None:
    first = await backend.create_session(CALL)
    other = await backend.create_session(replace(CALL, caller="bob"))
    assert first.metadata.uid != other.metadata.uid


@pytest.mark.parametrize(
    "spec",
    [
        {"env": [{"name": "A", "value": "theirs"}]},
        {
            "env": [{"name": "A", "value": "1"}],
            "files": [{"path": "/workspace/.bashrc", "content": "theirs", "readOnly": False}],
        },
    ],
    ids=["env", "files"],
)
async def test_a_session_that_poses_as_a_callers_own_is_none(
    world: World, backend: Backend, spec: dict[str, Any]
) -> None:
    """Who guesses a request id, and may make Sessions, writes what annotations it will have."""
    first = await backend.create_session(CALL)
    annotations = first.metadata.annotations
    await backend.delete_session(*first.key)
    world.apply_session(first.metadata.name, annotations=annotations, **spec)
    with pytest.raises(PermanentError) as refused:
        await backend.create_session(CALL)
    assert (refused.value.reason, refused.value.field) == ("AlreadyExists", "requestId")


async def test_a_call_without_a_request_id_is_never_repeated(backend: Backend) -> None:
    call = replace(CALL, request_id="")
    first, second = await backend.create_session(call), await backend.create_session(call)
    assert first.metadata.uid != second.metadata.uid


async def test_a_name_is_taken_once(backend: Backend) -> None:
    call = replace(CALL, name="mine")
    first = await backend.create_session(call)
    assert (await backend.create_session(call)).metadata.uid == first.metadata.uid
    with pytest.raises(PermanentError, match="there is a session mine already") as refused:
        await backend.create_session(replace(call, request_id="r-2"))
    assert (refused.value.reason, refused.value.field) == ("AlreadyExists", "name")


async def test_without_its_environment_there_is_no_session(backend: Backend) -> None:
    with pytest.raises(PermanentError) as refused:
        await backend.create_session(replace(CALL, environment="none"))
    assert (refused.value.reason, refused.value.field) == ("EnvironmentNotFound", "environment")


async def test_a_watch_is_not_ended_by_what_it_does_not_watch(
    world: World, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_operator.controller.backend._WATCH_BUFFER", 3)
    changes = backend.watch_sessions(NAMESPACE, "mine")
    assert isinstance(changes, AsyncGenerator)
    assert (await anext(changes)).synced
    for n in range(8):
        await backend.create_session(replace(CALL, request_id=f"other-{n}"))
    await backend.create_session(replace(CALL, name="mine"))
    change = await anext(changes)
    assert change.session
    assert change.session.metadata.name == "mine"
    await changes.aclose()
    assert not backend._watchers


# --- suspended sessions --------------------------------------------------------------------------


async def kept(world: World) -> Backend:
    """The backend of an operator with a running session `s1` whose workspace persists."""
    world.apply_environment(workspace={"persistent": True}, pool={"size": 0})
    world.apply_session()
    operator = world.start()
    await operator.until(lambda: world.served("s1"))
    return Backend(operator.context)


async def test_a_session_is_suspended_and_resumed(world: World) -> None:
    backend = await kept(world)
    for _ in range(2):
        asked = await backend.set_state(NAMESPACE, "s1", "Suspended")
        assert asked
        settled = await backend.wait_settled(NAMESPACE, "s1", 30)
        assert settled
        assert settled.status.phase is Phase.SUSPENDED
        assert await backend.wait_settled(NAMESPACE, "s1", 0) == settled
        await backend.set_state(NAMESPACE, "s1", "Running")
        settled = await backend.wait_settled(NAMESPACE, "s1", 30)
        assert settled
        assert settled.status.phase is Phase.RUNNING
    assert world.session()["status"]["restarts"] == 2


async def test_a_state_that_is_asked_for_already_costs_no_write(world: World) -> None:
    backend = await kept(world)
    world.cluster.writes.clear()
    assert await backend.set_state(NAMESPACE, "s1", "Running")
    assert world.cluster.writes == []
    assert await backend.set_state(NAMESPACE, "s2", "Running") is None


async def test_a_session_that_would_lose_its_work_is_left_alone(
    world: World, backend: Backend
) -> None:
    made = await backend.create_session(CALL)
    name = made.metadata.name
    await backend.wait_settled(NAMESPACE, name, 30)
    with pytest.raises(PermanentError) as caught:
        await backend.set_state(NAMESPACE, name, "Suspended")
    assert caught.value.reason == "WorkspaceNotPersistent"
    assert world.session(name)["spec"].get("state", "Running") == "Running"
    assert world.served(name)


async def test_the_call_that_made_a_session_finds_it_suspended(world: World) -> None:
    world.apply_environment(workspace={"persistent": True})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    backend = Backend(operator.context)
    name = (await backend.create_session(CALL)).metadata.name
    await backend.wait_settled(NAMESPACE, name, 30)
    await backend.set_state(NAMESPACE, name, "Suspended")
    await backend.wait_settled(NAMESPACE, name, 30)
    again = await backend.create_session(CALL)
    assert again.status.phase is Phase.SUSPENDED
    assert await backend.wait_settled(NAMESPACE, name, 30) == again
