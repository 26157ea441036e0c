"""Who keeps a connection to the Sessions API when anybody may open some."""

import asyncio
import contextlib
import ssl
from collections import Counter
from datetime import UTC, datetime

import pytest

from cloister_api.sessions.v1 import sessions_pb2 as pb
from cloister_api.sessions.v1 import sessions_pb2_grpc
from cloister_operator.identity import Authority
from cloister_operator.sessions_api.auth import Auth
from cloister_operator.sessions_api.doorkeeper import (
    CROWDED,
    NO_TOKEN,
    ONE_ADDRESS,
    Bounds,
    Connection,
    Doorkeeper,
    FarEnd,
    connections,
    of_peer,
    surplus,
)
from cloister_operator.sessions_api.guard import Guard
from cloister_operator.sessions_api.server import SessionsServer
from support.sessions_parts import ALICE, NS, FakeBackend, FakeReviewer, channel, get, made

BOUNDS = Bounds(room=10, strangers_of_one=3, patience=2.0, seconds=20.0)


def some(address: str, count: int, since: float = 0.0, caller: str = "") -> list[Connection]:
    return [Connection(FarEnd(address, 1000 + each), since, caller) for each in range(count)]


def test_who_shows_no_token_in_time_is_not_waited_for() -> None:
    late, early = some("10.0.0.1", 1, 0.0), some("10.0.0.2", 1, 15.0)
    known = some("10.0.0.3", 1, 0.0, "alice")
    assert surplus([*late, *early, *known], 20.5, (), BOUNDS) == {late[0]: NO_TOKEN}


def test_an_address_has_few_connections_that_nobody_is_known_on() -> None:
    crowd = [Connection(FarEnd("10.0.0.1", at), float(at)) for at in range(5)]
    others = some("10.0.0.2", 3)
    ended = surplus([*crowd, *others], 6.0, (), BOUNDS)
    assert ended == {crowd[0]: ONE_ADDRESS, crowd[1]: ONE_ADDRESS}


def test_callers_who_come_together_from_one_address_have_a_moment() -> None:
    crowd = some("10.0.0.1", 8, 4.5)
    assert surplus(crowd, 6.0, (), BOUNDS) == {}
    # But not where that was used to have too many.
    assert len(surplus(crowd, 6.0, {"10.0.0.1"}, BOUNDS)) == 5


def test_callers_are_counted_by_whose_token_they_show() -> None:
    mine = some("10.0.0.1", 9, 0.0, "alice")
    assert surplus(mine, 100.0, (), BOUNDS) == {}


def test_when_places_get_scarce_strangers_go_before_callers() -> None:
    callers = some("10.0.0.1", 6, 0.0, "alice")
    crowd = some("10.0.0.2", 5, 5.0)
    newcomer = some("10.0.0.3", 1, 5.0)
    ended = surplus([*callers, *crowd, *newcomer], 5.5, (), BOUNDS)
    assert set(ended.values()) == {CROWDED}
    assert {each.far_end.address for each in ended} == {"10.0.0.2"}
    assert len(ended) == 2


def test_a_caller_with_very_many_goes_before_strangers() -> None:
    """Any pod has a token, whatever its rights, and a stranger may be about to show one."""
    greedy = some("10.0.0.1", 9, 0.0, "pod")
    strangers = [each for at in range(2, 5) for each in some(f"10.0.0.{at}", 1, 5.0)]
    bounds = Bounds(room=10, share=3)
    ended = surplus([*greedy, *strangers], 5.5, (), bounds)
    assert {each.caller for each in ended} == {"pod"}
    assert len(ended) == 2


def test_of_callers_whoever_has_most_loses_the_oldest() -> None:
    greedy = [Connection(FarEnd("10.0.0.1", at), float(at), "mallory") for at in range(40)]
    modest = some("10.0.0.2", 2, 0.0, "alice")
    ended = surplus([*greedy, *modest], 50.0, (), BOUNDS)
    assert list(ended) == greedy[:32]


def test_whoever_has_most_loses_no_more_than_down_to_the_next() -> None:
    found = [*some("10.0.0.1", 9, 0.0, "mallory"), *some("10.0.0.2", 7, 0.0, "trudy")]
    ended = Counter(each.caller for each in surplus(found, 1.0, (), BOUNDS))
    assert ended == {"mallory": 4, "trudy": 2}


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ("ipv4:10.0.0.1:4567", FarEnd("10.0.0.1", 4567)),
        ("ipv6:%5B2001:db8::1%5D:4567", FarEnd("2001:db8::1", 4567)),
        ("ipv6:[::ffff:10.0.0.1]:4567", FarEnd("10.0.0.1", 4567)),
        ("unix:/run/socket", None),
        ("", None),
    ],
)
def test_a_peer_is_read_as_grpc_names_it(peer: str, found: FarEnd | None) -> None:
    assert of_peer(peer) == found


class Hall:
    """A real server, whose doorkeeper looks when the test says so."""

    def __init__(self, bounds: Bounds) -> None:
        self.now = 100.0
        self.doorkeeper = Doorkeeper(bounds, lambda: self.now)
        self.authority = Authority.create(datetime.now(UTC))
        self.backend = FakeBackend()
        self.backend.sessions["s1"] = made()
        self.reviewer = FakeReviewer()
        guard = Guard(Auth(self.reviewer), doorkeeper=self.doorkeeper)
        self.server = SessionsServer(self.backend, self.reviewer, self.authority, guard=guard)
        self.port = 0
        self.kept: list[asyncio.StreamWriter] = []

    async def stranger(self) -> asyncio.StreamReader:
        """A connection that says nothing after its handshake."""
        context = ssl.create_default_context(cadata=self.authority.ca_pem.decode())
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="sessions.cloister.dev"
        )
        # Kept from being collected, and so closed.
        self.kept.append(writer)
        return reader

    async def come(self, count: int) -> None:
        """Wait until there are so many connections."""
        while len(connections(self.port)) != count:  # noqa: ASYNC110 - gRPC tells nobody
            await asyncio.sleep(0.01)


async def test_one_pod_takes_no_places_from_callers() -> None:
    hall = Hall(Bounds(strangers_of_one=2, patience=2.0, seconds=20.0))
    hall.port = await hall.server.start("127.0.0.1:0")
    metadata = [("authorization", f"Bearer {ALICE}")]
    async with channel(hall.port, hall.authority) as opened:
        stub = sessions_pb2_grpc.SessionsStub(opened)
        watch = stub.Watch(pb.WatchSessionsRequest(namespace=NS), metadata=metadata)
        await watch.initial_metadata()
        strangers = [await hall.stranger() for _ in range(6)]
        await hall.come(7)
        hall.doorkeeper.look(hall.port)
        hall.now += 3.0
        hall.doorkeeper.look(hall.port)
        # Four of the seven end; gRPC itself lets their places go.
        await hall.come(3)
        hall.now += 30.0
        hall.doorkeeper.look(hall.port)
        for each in strangers:
            while await each.read(4096):
                pass
        await hall.come(1)
        assert (await stub.Get(get(), metadata=metadata)).name == "s1"
        assert not watch.done()
        watch.cancel()
    await hall.server.stop(0)


async def test_the_service_accounts_of_a_namespace_are_one_caller() -> None:
    """Who may make one makes as many as they like."""
    hall = Hall(Bounds(room=2, share=1))
    hall.port = await hall.server.start("127.0.0.1:0")
    tokens = {each: f"system:serviceaccount:team-a:{each}" for each in ("one", "two")}
    hall.reviewer.valid |= tokens
    hall.reviewer.allowed |= set(tokens.values())
    async with contextlib.AsyncExitStack() as opened:
        watches = []
        for token in (ALICE, *tokens):
            there = await opened.enter_async_context(channel(hall.port, hall.authority))
            watch = sessions_pb2_grpc.SessionsStub(there).Watch(
                pb.WatchSessionsRequest(namespace=NS),
                metadata=[("authorization", f"Bearer {token}")],
            )
            await watch.initial_metadata()
            watches.append(watch)
        await hall.come(3)
        hall.doorkeeper.look(hall.port)
        await hall.come(2)
        codes = [asyncio.create_task(watch.code()) for watch in watches]
        ended, _ = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert ended == {codes[1]}
        for watch in watches:
            watch.cancel()
    await hall.server.stop(0)


async def test_who_shows_wrong_tokens_stays_a_stranger() -> None:
    hall = Hall(Bounds(seconds=20.0))
    hall.port = await hall.server.start("127.0.0.1:0")
    async with channel(hall.port, hall.authority) as opened:
        stub = sessions_pb2_grpc.SessionsStub(opened)
        call = stub.Get(get(), metadata=[("authorization", "Bearer nobodys")])
        assert (await call.code()).name == "UNAUTHENTICATED"
        hall.doorkeeper.look(hall.port)
        hall.now += 21.0
        hall.doorkeeper.look(hall.port)
        await hall.come(0)
    await hall.server.stop(0)


async def test_a_connection_that_carries_several_callers_is_nobodys_alone() -> None:
    doorkeeper = Doorkeeper()
    for caller in ("alice", "bob", "alice"):
        doorkeeper.heard(FarEnd("10.0.0.1", 4567), caller)
    assert doorkeeper._callers == {FarEnd("10.0.0.1", 4567): "several at 10.0.0.1"}
