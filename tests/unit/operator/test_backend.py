"""Sessions made for the Sessions API: which calls are the same call."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from cloister_operator.api.backend import NewFile, NewSession
from cloister_operator.controller.backend import Backend
from cloister_operator.errors import PermanentError
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


async def test_a_request_id_means_nothing_to_another_caller(backend: Backend) -> None:
    first = await backend.create_session(CALL)
    other = await backend.create_session(replace(CALL, caller="bob"))
    assert first.metadata.uid != other.metadata.uid


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
