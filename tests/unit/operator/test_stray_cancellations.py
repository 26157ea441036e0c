"""What is cancelled under those that wait for it ends none of them without a word."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import pytest

from cloister_operator import app
from cloister_operator.api.gateway import GatewayPod
from cloister_operator.cluster.api import HttpApi
from cloister_operator.cluster.resources import NODES, Resource
from cloister_operator.controller import gateway_link
from cloister_operator.controller import gateways as gateways_module
from cloister_operator.controller.election import Election
from cloister_operator.controller.prover import Prover
from cloister_operator.handlers import Watcher
from cloister_operator.identity import Authority
from cloister_operator.sandboxes.gateways import Decided
from cloister_operator.sessions_api import doorkeeper
from cloister_operator.sessions_api.doorkeeper import Doorkeeper
from cloister_operator.settings import Settings
from cloister_operator.tasks import EndedAlone
from cloister_operator.workqueue import WorkQueue
from support.eventually import until
from support.fake_api import Connection
from support.fake_operator import Operator, World
from support.gateway_site import Site
from support.sessions_parts import Api, failure, get, made

MakeWorld = Callable[..., World]


async def cancelled_elsewhere(*_: object, **__: object) -> Any:
    """Waits for what another one cancels."""
    other = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(other.cancel)
    return await other


class Once:
    """In place of a method: the first call waits for what another one cancels."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self.calls = 0

    async def __call__(self, *args: Any, **given: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            return await cancelled_elsewhere()
        return await self._method(*args, **given)


def causes(error: BaseException) -> list[type[BaseException]]:
    """The leaves of a group."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in causes(each)]
    return [type(error)]


async def end_of(operator: Operator) -> list[type[BaseException]]:
    """What an operator ends by."""
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*operator._tasks, return_exceptions=True)
    # Nobody is to be told once more.
    operator._tasks.clear()
    return [leaf for each in ended if each for leaf in causes(each)]


# --- parts of the process ------------------------------------------------------------------------


async def test_an_operator_does_not_decide_on_without_one_of_its_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prover, "run", cancelled_elsewhere)
    operator = world.start()
    assert await end_of(operator) == [EndedAlone]


async def test_a_mirror_does_not_go_on_with_a_kind_that_nobody_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Connection.watch

    def cut(self: Connection, resource: Resource, *args: Any) -> AsyncIterator[Any]:
        return cancelling() if resource is NODES else watch(self, resource, *args)

    async def cancelling() -> AsyncIterator[Any]:
        yield await cancelled_elsewhere()

    monkeypatch.setattr(Connection, "watch", cut)
    operator = world.start()
    assert await end_of(operator) == [EndedAlone]


async def test_what_cannot_be_said_of_the_clusters_addresses_ends_the_operator(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sandboxes would go on reaching what has become the cluster's own since."""
    monkeypatch.setattr("cloister_operator.controller.ranges.SETTLES_SECONDS", 0.01)
    operator = world.start()
    await operator.until(lambda: operator.context.ranges.current)

    def fails(_: object) -> None:
        raise ValueError("of an address")

    monkeypatch.setattr("cloister_operator.plan.ranges.joined", fails)
    addresses = [{"type": "InternalIP", "address": "10.0.0.7"}]
    world.cluster.create(
        NODES, "", {"metadata": {"name": "new"}, "status": {"addresses": addresses}}
    )
    assert await end_of(operator) == [ValueError]


async def test_an_election_that_ends_alone_is_begun_again() -> None:
    class Standing:
        resigned = False
        run = staticmethod(cancelled_elsewhere)

    with pytest.raises(app.LeadLost):
        await app.stand(cast("Election", Standing()), cancelled_elsewhere)


async def test_a_process_that_ends_untold_does_not_say_that_all_was_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoApi:
        async def close(self) -> None: ...

    async def connect() -> NoApi:
        return NoApi()

    monkeypatch.setattr(HttpApi, "connect", connect)
    monkeypatch.setattr(app, "_serve_on", cancelled_elsewhere)
    assert await app.run(Settings.model_construct()) == 1


async def test_a_watch_of_custom_resources_that_is_cancelled_is_told() -> None:
    ended = asyncio.Event()
    watcher = Watcher(lambda *_: None, ended.set)
    watcher._watch = cancelled_elsewhere  # type: ignore[method-assign]
    watcher.start()
    async with asyncio.timeout(30):
        await ended.wait()
    await watcher.stop()


async def test_connections_are_looked_at_again_after_a_surprise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doorkeeper, "SLOWLY", 0.0)
    looks: list[int] = []

    def look(port: int) -> bool:
        looks.append(port)
        raise ValueError("of an address that nobody has seen before")

    keeper = Doorkeeper()
    monkeypatch.setattr(keeper, "look", look)
    task = asyncio.create_task(keeper.run(1))
    await until(lambda: len(looks) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- work ----------------------------------------------------------------------------------------


async def test_a_key_whose_handling_was_cut_is_handled_again() -> None:
    async def handle(key: str) -> None:
        handled.append(key)

    handled: list[str] = []
    queue = WorkQueue(Once(handle), at_once=1)
    task = asyncio.create_task(queue.run())
    queue.add("a")
    await until(lambda: handled == ["a"])
    # Nor is its place lost.
    queue.add("b")
    await until(lambda: handled == ["a", "b"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pod_is_followed_on_when_a_call_to_it_was_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_operator.controller.warmer._ANOTHER_LOOK", 0.0)
    cut = Once(world.sandboxes.probe)
    monkeypatch.setattr(world.sandboxes, "probe", cut)
    world.apply_environment(pool={"size": 1})
    operator = world.start()
    await operator.until(lambda: world.pool_is(1))
    assert cut.calls > 1


async def test_a_repository_whose_fetch_was_cut_is_fetched_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_operator.controller.repositories.AGAIN_SECONDS", 0.0)
    world = make_world(git_allowed_hosts=("git.example.com",))
    git = {"url": "https://git.example.com/a.git", "ref": "main"}
    world.apply_environment(files=[{"path": "/workspace/a", "readOnly": False, "git": git}])
    operator = world.start()
    fetched = asyncio.Event()

    async def fetch(*_: object) -> Any:
        fetched.set()
        await asyncio.Event().wait()

    class Fetches:
        pass

    cut = Once(fetch)
    operator.context.repositories.fetches = Fetches()  # type: ignore[assignment]
    monkeypatch.setattr(Fetches, "fetch", cut, raising=False)
    await until(fetched.is_set)
    assert cut.calls > 1


# --- egress gateways -----------------------------------------------------------------------------


@pytest.fixture
async def site(world_authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    for module, name in (
        (gateway_link, "HEARTBEAT"),
        (gateways_module, "LOOK"),
        (gateway_link, "FEED_PAUSE"),
    ):
        monkeypatch.setattr(module, name, 0.02)
    opened = Site(world_authority)
    yield opened
    await opened.close()


@pytest.mark.parametrize("method", ["apply", "info"])
async def test_a_gateway_is_told_on_when_a_call_to_it_was_cut(
    method: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.gateway("g1")
    operator = site.operator()
    cut = Once(getattr(operator.client, method))
    monkeypatch.setattr(operator.client, method, cut)
    operator.start()
    await until(lambda: cut.calls > 1)
    async with asyncio.timeout(30):
        await operator.egress.until_granted(site.pod("p1", "10.244.0.5"))


async def test_a_gateway_is_followed_on_when_its_feed_was_cut(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.gateway("g1")
    operator = site.operator()
    asked: list[tuple[str, int]] = []

    async def decisions(gateway: GatewayPod, boot_id: str, cursor: int) -> AsyncIterator[Decided]:
        asked.append((boot_id, cursor))
        yield Decided("boot", len(asked), [], 0)
        await cancelled_elsewhere()

    monkeypatch.setattr(operator.client, "decisions", decisions)
    operator.start()
    await until(lambda: len(asked) == 3)
    assert asked == [("", 0), ("boot", 1), ("boot", 2)]


# --- the Sessions API ----------------------------------------------------------------------------


async def test_a_call_that_was_cut_inside_is_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC answers nobody whose handler was cancelled."""
    api.backend.sessions["s1"] = made()
    monkeypatch.setattr(api.reviewer, "review_access", cancelled_elsewhere)
    failed = await failure(api.call("Get", get()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
